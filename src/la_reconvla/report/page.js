// Moves the pictures of an episode with its slider, opens what is folded.
"use strict";
document.documentElement.classList.add("scripted");

const FRAME_MS = 450;

for (const slider of document.querySelectorAll(".slider")) {
  const range = slider.querySelector("input");
  const output = slider.querySelector("output");
  const button = slider.querySelector("button");
  const labels = JSON.parse(slider.dataset.labels);
  const stacks = [...slider.querySelectorAll(".stack")];
  let timer = null;

  const show = () => {
    for (const stack of stacks) {
      [...stack.children].forEach((picture, step) => { picture.hidden = step !== range.valueAsNumber; });
    }
    output.textContent = labels[range.valueAsNumber];
    range.setAttribute("aria-valuetext", labels[range.valueAsNumber]);
  };
  const move = (by) => {
    range.valueAsNumber = (range.valueAsNumber + by + labels.length) % labels.length;
    show();
  };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };

  range.addEventListener("input", () => { pause(); show(); });
  button.addEventListener("click", () => {
    if (timer !== null) return pause();
    timer = setInterval(() => move(1), FRAME_MS);
    button.textContent = "Pause";
  });
  slider.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault(); // the range would move as well
    pause();
    move(by);
  });
  show();
}

// A link into what is folded opens it, in a page that was opened with such an address too.
const unfold = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const folded = target && target.querySelector("details.fold");
  if (!folded) return;
  folded.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const command = button.closest(".next").querySelector("pre");
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch { // the browser forbids it to this page: the command is selected instead
      getSelection().selectAllChildren(command);
    }
  });
}

addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not([open])")) {
    folded.open = true;
    folded.dataset.opened = "";
  }
});
addEventListener("afterprint", () => {
  for (const opened of document.querySelectorAll("details[data-opened]")) {
    opened.open = false;
    delete opened.dataset.opened;
  }
});
