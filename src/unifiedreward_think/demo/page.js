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
// What was asked last in each tab; an answer to something else says so (page.css).
const urLast = {};
const urPrint = fields => JSON.stringify(fields.map(value => value?.video?.path ?? value?.path ?? value ?? ""));
const urMark = (tab, of) => { const found = document.getElementById(tab); if (found) found.dataset.of = of; };
const urAsked = (tab, inputs, fields) => { urLast[tab] = urPrint(fields); urMark(tab, "now"); return inputs; };
const urChanged = (tab, fields) => { if (tab in urLast) urMark(tab, urPrint(fields) === urLast[tab] ? "now" : "before"); };
// A clip that the browser cannot play is shown by its frames.
document.addEventListener("error", event => {
  if (event.target.tagName !== "VIDEO") return;
  event.target.closest(".column, .form")?.querySelector(".ur-ask-frames")?.click();
}, true);
// Gradio says in a corner, for seconds, what went wrong with an upload or the connection: here it stays, in its place.
const urNotice = text => {
  const place = [...document.querySelectorAll("[role=tabpanel]")].find(panel => panel.offsetParent)?.querySelector(".ur-message");
  if (!place) return;
  const notice = Object.assign(document.createElement("p"), {className: "ur-alert ur-notice", role: "alert", textContent: text});
  place.after(notice);
};
const urToast = toast => {
  toast.dataset.seen = true;
  const text = toast.innerText.split("\n").map(line => line.trim()).filter(line => !["", "\u00d7", "Error"].includes(line)).join(": ");
  if (text !== "Video not playable") urNotice(text); // its frames are shown, with the reason
  if (!/connection/i.test(text)) return;
  for (const card of document.querySelectorAll(".ur-card.writing, .ur-progress")) { // nobody will go on with them
    card.classList.remove("writing");
    const said = card.querySelector(".ur-verdict, span");
    if (said) said.textContent = "No answer: the connection is lost";
  }
};
document.addEventListener("click", event => {
  if (event.target.closest(".ur-judge, .ur-swap, input[type=file]")) document.querySelectorAll(".ur-notice").forEach(n => n.remove());
}, true);
// On a phone the verdict is below the fold, and what went wrong may be above it.
const urInView = element => { const {top, bottom} = element.getBoundingClientRect(); return top >= 0 && bottom <= innerHeight; };
let urFollow = ""; // "asked", "answering" or nothing
document.addEventListener("click", event => {
  if (event.target.closest(".ur-judge, .ur-swap") && innerWidth <= 760) urFollow = "asked";
});
const urFound = () => {
  const result = [...document.querySelectorAll(".ur-result, .ur-batch")].find(found => found.offsetParent);
  if (!urFollow || !result) return;
  const writing = result.querySelector(".ur-card.writing, .ur-progress");
  if (urFollow === "asked" ? !writing : writing) return;
  urFollow = writing ? "answering" : "";
  // At once: a smooth scroll ends where the page changes under it. Whoever has read on is left there.
  if (result.getBoundingClientRect().top > 200) result.scrollIntoView({block: "start"});
};
const urShown = new WeakSet();
new MutationObserver(() => {
  urFound();
  document.querySelectorAll(".toast-body.error:not([data-seen])").forEach(urToast);
  for (const alert of document.querySelectorAll(".ur-alert")) {
    if (urShown.has(alert) || !alert.offsetParent) continue;
    urShown.add(alert);
    if (!urInView(alert)) alert.scrollIntoView({block: "center"});
  }
}).observe(document.documentElement, {childList: true, subtree: true});
// The reasoning stays in view while it is written.
new MutationObserver(() => {
  for (const box of document.querySelectorAll(".ur-card.writing .ur-think")) box.scrollTop = box.scrollHeight;
}).observe(document.documentElement, {childList: true, subtree: true});
