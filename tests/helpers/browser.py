"""A headless Chromium for the tests of pages, and where their pictures go."""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(os.environ.get("UNIFIEDREWARD_SCREENSHOTS") or ROOT / "build" / "screenshots")
browser_test = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
