"use strict";
(() => {
  // One player: another button, or the same one again, ends what is playing.
  const sounds = JSON.parse(document.getElementById("sounds").textContent);
  const player = new Audio();
  let current = null;
  const told = (button, playing) => {
    button.setAttribute("aria-pressed", String(playing));
    button.firstElementChild.textContent = playing ? "■" : "▶";
  };
  const end = () => { if (current) told(current, false); current = null; };
  player.addEventListener("ended", end);
  player.addEventListener("error", () => {
    if (!current) return;
    current.classList.add("broken");
    current.title = "This browser can't play it, or the file is not where it was";
    end();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-sound]");
    if (!button) return;
    const again = button === current;
    player.pause();
    end();
    if (again) return;
    current = button;
    told(button, true);
    player.src = sounds[button.dataset.sound];
    player.play().catch(() => {});
  });
})();
