# shellcheck shell=bash
# What tests need beside Python packages: Chromium for the demo's page; FFmpeg and ImageMagick to compare clips and pictures
# with (and FFmpeg's libraries for torchcodec). test.sh sources this file. Root on Debian or Ubuntu gets them by apt;
# elsewhere a line says what is missing, and the tests that need it skip, or fail where CI is set.

system_packages() {
  local missing=()
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
  command -v ffmpeg >/dev/null || missing+=(ffmpeg)
  command -v mogrify-im6.q16 >/dev/null || command -v magick >/dev/null || missing+=(imagemagick)
  ((${#missing[@]})) || return 0
  if ((EUID == 0)) && command -v apt-get >/dev/null; then
    echo "test: installing ${missing[*]} by apt"
    if apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
      "${missing[@]}" >/dev/null; then
      return 0
    fi
  fi
  echo "test: not installed: ${missing[*]}; tests that need them skip, and fail where CI is set" >&2
}
