// Two videos of a pair run as one: play, pause and seek in either moves both.
const urPartners = video => [...(video.closest?.(".ur-film")?.querySelectorAll("video") ?? [])].filter(other => other !== video);
// A pause may overtake a play that has not begun: that ends its promise, which is no error.
const urStart = video => video.play().catch(error => { if (error.name !== "AbortError") throw error; });
for (const name of ["play", "pause", "seeked"]) {
  document.addEventListener(name, event => {
    const video = event.target;
    for (const other of urPartners(video)) {
      if (Math.abs(other.currentTime - video.currentTime) > 0.15) other.currentTime = video.currentTime;
      // Events arrive late: what counts is the state now, or the two would wake each other for ever.
      if (name === "play" && !video.paused && other.paused) urStart(other);
      if (name === "pause" && video.paused && !video.ended) other.pause();
    }
  }, true);
}
const urPlay = start => {
  const videos = [...document.querySelectorAll(".ur-film video")].filter(video => video.offsetParent);
  const run = videos.some(video => video.paused || video.ended);
  for (const video of videos) {
    if (start || video.ended) video.currentTime = 0;
    if (start || run) urStart(video); else video.pause();
  }
};
// Drawings of a few pixels stay sharp.
document.addEventListener("load", event => {
  if (event.target.tagName === "IMG") event.target.classList.toggle("ur-pixels", event.target.naturalWidth <= 96);
}, true);
// Ctrl or Cmd + Enter judges, with Shift it swaps.
document.addEventListener("keydown", event => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const wanted = event.shiftKey ? ".ur-swap" : ".ur-judge";
  const button = [...document.querySelectorAll(wanted)].find(found => found.offsetParent);
  if (button) { event.preventDefault(); button.click(); }
});
// On a phone the verdict is below the fold.
document.addEventListener("click", event => {
  if (!event.target.closest(".ur-judge, .ur-swap") || innerWidth > 760) return;
  const result = [...document.querySelectorAll(".ur-result, .ur-batch")].find(found => found.offsetParent);
  result?.scrollIntoView({block: "start"}); // at once: a smooth scroll ends where the page changes under it
});
// The reasoning stays in view while it is written.
new MutationObserver(() => {
  for (const box of document.querySelectorAll(".ur-card.writing .ur-think")) box.scrollTop = box.scrollHeight;
}).observe(document.documentElement, {childList: true, subtree: true});
