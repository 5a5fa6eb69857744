// The player: films of one start, moved by one clock, with attention and the target's outline drawn over them.
(() => {
  const DRIFT = 0.06; // seconds by which a film may differ from the clock
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // Colour of a level from 0 to 1, between the two nearest of the ramp.
  const painter = (colours) => {
    const ramp = colours.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    return (level) => {
      const at = Math.min(Math.max(level, 0), 1) * (ramp.length - 1);
      const low = Math.min(Math.floor(at), ramp.length - 2);
      return ramp[low].map((value, channel) => value + (at - low) * (ramp[low + 1][channel] - value));
    };
  };

  class Film {
    constructor(figure, most, colour) {
      this.data = JSON.parse(figure.dataset.film);
      this.video = figure.querySelector("video");
      this.now = figure.querySelector(".now");
      this.cursor = figure.querySelector(".cursor");
      this.count = this.data.steps.length;
      this.end = this.count / this.data.rate;
      this.looks = bytes(this.data.looks);
      [this.most, this.colour, this.drawn] = [most, colour, -1];
      this.attention = figure.querySelector(".attention");
      this.outline = figure.querySelector(".outline");
      [this.attention.height, this.attention.width] = this.data.grid.length ? this.data.grid : [1, 1];
      this.outline.width = this.outline.height = this.data.size;
    }

    // The last picture stays while others go on; half a picture before its end, so that no browser shows nothing.
    at(time) { return Math.min(time, this.end - 0.5 / this.data.rate); }

    seek(time) {
      if (Math.abs(this.video.currentTime - this.at(time)) > 0.001) this.video.currentTime = this.at(time);
      this.show(this.at(time));
    }

    show(time) {
      const picture = Math.min(Math.floor(time * this.data.rate + 1e-4), this.count - 1);
      if (picture === this.drawn) return;
      this.drawn = picture;
      this.paint(picture);
      this.edge(this.data.outlines[picture]);
      const step = this.data.steps[picture];
      const x = 256 * step / Math.max(1, this.data.steps[this.count - 1]);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
      const away = this.data.distance[picture];
      const reached = Object.entries(this.data.stages).filter(([, since]) => since <= step).map(([name]) => name.replaceAll("_", " "));
      this.now.textContent = [
        `step ${step}`, away === null ? "" : `${(100 * away).toFixed(1)} cm away`,
        `gripper ${(100 * this.data.opening[picture]).toFixed(1)} cm open`, reached.join(", "),
      ].filter(Boolean).join(" · ");
    }

    paint(picture) {
      if (!this.data.grid.length) return;
      const patches = this.attention.width * this.attention.height;
      const first = this.data.shown[picture] * patches;
      const context = this.attention.getContext("2d");
      const image = context.createImageData(this.attention.width, this.attention.height);
      for (let patch = 0; patch < patches; patch += 1) {
        const level = this.looks[first + patch] / 255 * this.data.most / this.most;
        image.data.set([...this.colour(level), 90 + 165 * level], 4 * patch);
      }
      context.putImageData(image, 0, 0);
    }

    edge({ left, top, width, height, bits }) {
      const context = this.outline.getContext("2d");
      const packed = bytes(bits);
      const on = (x, y) => x >= 0 && y >= 0 && x < width && y < height
        && (packed[(y * width + x) >> 3] >> (7 - ((y * width + x) & 7)) & 1) === 1;
      context.clearRect(0, 0, this.data.size, this.data.size);
      for (let y = -1; y <= height; y += 1) {
        for (let x = -1; x <= width; x += 1) {
          const around = on(x - 1, y) || on(x + 1, y) || on(x, y - 1) || on(x, y + 1);
          if (on(x, y) || !around) continue; // pixels beside the target, so that it is not covered
          context.fillStyle = (x + y) % 6 < 3 ? "#00e5ff" : "#003a42";
          context.fillRect(left + x, top + y, 1, 1);
        }
      }
    }
  }

  for (const player of document.querySelectorAll(".player")) {
    const pick = (name) => player.querySelector(name);
    const [starts, scrub, button, output] = [".start", ".scrub", ".play", "output"].map(pick);
    const [strength, outlined, speed] = [".strength", ".outlined", ".speed"].map(pick);
    const takes = [...player.querySelectorAll(".take")];
    const colour = painter(player.dataset.colours.split(" "));
    const made = takes.map(() => null);
    let [films, time, end, running, last] = [[], 0, 1, false, 0.6];

    const show = () => {
      scrub.value = time;
      output.textContent = `${time.toFixed(1)} s of ${end.toFixed(1)} s`;
      scrub.setAttribute("aria-valuetext", output.textContent);
    };
    const seek = (to) => {
      time = Math.min(Math.max(to, 0), end);
      films.forEach((film) => film.seek(time));
      show();
    };
    const pause = () => {
      running = false;
      films.forEach((film) => film.video.pause());
      button.textContent = "Play";
    };
    // The films play by themselves; the longest is the clock, and the others are put right where they drift.
    const tick = () => {
      if (!running) return;
      const clock = films.reduce((longest, film) => (film.end > longest.end ? film : longest));
      time = clock.video.currentTime;
      for (const film of films) {
        const wanted = film.at(time);
        if (wanted < time) film.video.pause();
        if (film !== clock && Math.abs(film.video.currentTime - wanted) > DRIFT) film.video.currentTime = wanted;
        film.show(wanted);
      }
      show();
      if (time >= clock.at(end) || clock.video.ended) {
        pause();
        seek(end);
      } else requestAnimationFrame(tick);
    };
    const play = () => {
      if (time >= end - 0.05) seek(0);
      running = true;
      button.textContent = "Pause";
      for (const film of films) {
        film.video.playbackRate = Number(speed.value);
        if (film.at(time) === time) film.video.play().catch(() => {}); // a pause that comes first is no error
      }
      requestAnimationFrame(tick);
    };
    const set = (value) => {
      strength.value = value;
      player.querySelectorAll(".attention").forEach((canvas) => { canvas.style.opacity = value; });
    };
    const open = (number) => {
      pause();
      const at = (number + takes.length) % takes.length;
      starts.value = at;
      takes.forEach((take, index) => { take.hidden = index !== at; });
      const most = Number(takes[at].dataset.most);
      made[at] ??= [...takes[at].querySelectorAll("figure")].map((figure) => new Film(figure, most, colour));
      films = made[at];
      films.forEach((film) => { film.video.preload = "auto"; });
      end = Math.max(...films.map((film) => film.end));
      scrub.max = end;
      pick(".most").textContent = `${most.toFixed(1)} ×`;
      pick(".scale").hidden = !most;
      seek(0);
    };

    const keys = {
      " ": () => (running ? pause() : play()),
      ArrowLeft: (shift) => { pause(); seek(time - (shift ? 1 : 1 / films[0].data.rate)); },
      ArrowRight: (shift) => { pause(); seek(time + (shift ? 1 : 1 / films[0].data.rate)); },
      Home: () => seek(0),
      End: () => { pause(); seek(end); },
      n: () => open(Number(starts.value) + 1),
      p: () => open(Number(starts.value) - 1),
      a: () => {
        const now = Number(strength.value);
        if (now > 0) last = now;
        set(now > 0 ? 0 : last);
      },
      o: () => outlined.click(),
    };
    player.addEventListener("keydown", (event) => {
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      const native = event.target.matches("select, .strength") || (event.key === " " && event.target.matches("button, input:not(.scrub)"));
      if (!act || native || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act(event.shiftKey);
    });
    starts.addEventListener("change", () => open(Number(starts.value)));
    pick(".previous").addEventListener("click", keys.p);
    pick(".next").addEventListener("click", keys.n);
    button.addEventListener("click", keys[" "]);
    scrub.addEventListener("input", () => { pause(); seek(scrub.valueAsNumber); });
    speed.addEventListener("change", () => films.forEach((film) => { film.video.playbackRate = Number(speed.value); }));
    strength.addEventListener("input", () => set(strength.value));
    outlined.addEventListener("change", () => {
      player.querySelectorAll(".outline").forEach((canvas) => { canvas.hidden = !outlined.checked; });
    });
    set(strength.value);
    open(0);
    if ("playing" in player.dataset && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  }
})();
