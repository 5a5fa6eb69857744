"use strict";
// The page holds no state of its own but what is being dragged or typed: everything else is what the server last sent.

const $ = (id) => document.getElementById(id);
const SUITES = { libero_spatial: "LIBERO-Spatial: two bowls", libero_object: "LIBERO-Object: groceries", libero_goal: "LIBERO-Goal: one kitchen",
  libero_10: "LIBERO-10: long tasks", libero_90: "LIBERO-90: many tasks" };
const STAGES = [["approached", "came near"], ["grasped", "grasped it"], ["lifted", "lifted it"], ["placed", "put it there"]];
const MOVES = [["away", "towards you"], ["right", "left"], ["down", "up"], ["roll", "roll"], ["tilt", "tilt"], ["turn", "turn"], ["opens hand", "closes hand"]];
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // inferno
const NUDGE = 0.02; // of the picture, for an arrow key

let socket = null, waits = 500, offered = null, frame = null, state = null, held = null, choiceShown = "";

function send(wish) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wish));
  else notice("Not connected: that did not reach the robot.");
}

// ---------------------------------------------------------------- the connection

function connect() {
  const token = new URLSearchParams(location.search).get("token") || "";
  socket = new WebSocket(`ws://${location.host}/socket?token=${encodeURIComponent(token)}`);
  socket.onopen = () => { waits = 500; link("live", "Live"); };
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    ({ offered: takeOffered, frame: takeFrame, state: takeState, notice: (one) => notice(one.text) })[message.kind](message);
  };
  socket.onclose = (event) => {
    if (event.code === 1001) {
      link("lost", "The program has ended. Start it again and open its new address.");
    } else {
      link("lost", "Connection lost. Trying again. If the program was started anew, open its new address.");
      setTimeout(connect, waits);
      waits = Math.min(8000, 2 * waits);
    }
    enable();
  };
}

function link(kind, text) {
  $("link").className = kind;
  $("link-text").textContent = text;
}

function notice(text) {
  const line = document.createElement("p"), close = document.createElement("button");
  line.append(text, close);
  close.textContent = "×";
  close.ariaLabel = "Close this message";
  close.onclick = () => line.remove();
  $("notices").append(line);
  while ($("notices").children.length > 3) $("notices").firstChild.remove();
  setTimeout(() => line.remove(), 12000);
}

// ---------------------------------------------------------------- what the server sends

function takeOffered(message) {
  offered = message;
  fill($("suite"), Object.keys(message.suites).map((name) => [name, SUITES[name] || name.replaceAll("_", " ")]));
  segments($("cameras"), message.cameras.map((name) => [name, name]), (camera) => send({ do: "camera", camera }));
  segments($("speeds"), message.speeds.map((value) => [value, value ? `${{ 0.25: "¼", 0.5: "½" }[value] || value}×` : "max"]), (value) => send({ do: "speed", value: Number(value) }));
  $("arms").replaceChildren(...message.arms.map((arm) => {
    const label = document.createElement("label"), radio = document.createElement("input"), text = document.createElement("span");
    const about = document.createElement("small");
    Object.assign(radio, { type: "radio", name: "arm", value: arm.name });
    radio.onchange = () => send({ do: "arm", name: arm.name });
    about.textContent = arm.about;
    text.append(arm.name, about);
    label.append(radio, text);
    return label;
  }));
}

function takeFrame(message) {
  const fresh = !frame || JSON.stringify(frame.choice) !== JSON.stringify(message.choice);
  if (fresh) choiceShown = "";
  const said = !frame || frame.words !== message.words;
  frame = message;
  $("picture").src = frame.image;
  $("picture").hidden = false;
  $("picture").alt = `The robot after ${frame.step} steps, told: ${frame.words}`;
  heat();
  if (fresh) showChoice(frame.choice);
  if ((said || fresh) && document.activeElement !== $("words")) $("words").value = frame.words;
  $("progress").value = frame.step / frame.limit;
  if (document.activeElement !== $("limit")) $("limit").value = frame.limit;
  $("note").hidden = !frame.note;
  $("note").textContent = frame.note;
  pressed($("cameras"), frame.camera);
  for (const radio of document.getElementsByName("arm")) radio.checked = radio.value === frame.arm;
  offers();
  handles();
  events();
  status();
}

function takeState(message) {
  state = message;
  pressed($("speeds"), String(state.speed));
  const others = state.tabs - 1;
  link("live", others ? `Live, and in ${others} other tab${others > 1 ? "s" : ""}: all steer the same robot` : "Live");
  if (frame && !state.busy) { // what was refused shows again as it is; what is being loaded stays as it was picked
    for (const radio of document.getElementsByName("arm")) radio.checked = radio.value === frame.arm;
    showChoice(frame.choice);
  }
  status();
}

// ---------------------------------------------------------------- drawing

function heat() {
  const [rows, columns] = frame.grid, canvas = $("heat"), scores = frame.attention;
  canvas.hidden = !scores;
  if (!scores) return;
  canvas.width = columns;
  canvas.height = rows;
  const least = Math.min(...scores), spread = Math.max(...scores) - least;
  const pixels = new ImageData(columns, rows);
  scores.forEach((score, i) => {
    const share = spread > 0 ? (score - least) / spread : 0, at = share * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2);
    const colour = HEAT[low].map((value, c) => value + (at - low) * (HEAT[low + 1][c] - value));
    pixels.data.set([...colour, 255 * (0.3 + 0.7 * share)], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.style.opacity = $("strength").value / 100;
}

function name(instance) {
  return instance.replace(/^akita_/, "").replaceAll("_", " ");
}

function offers() {
  $("offers").replaceChildren(...frame.offers.map(([text, checked]) => {
    const chip = document.createElement("button");
    chip.textContent = text;
    chip.type = "button";
    chip.ariaPressed = String(text === frame.words);
    chip.title = checked ? "The simulator can check this one." : "The simulator cannot check this one in this scene.";
    chip.onclick = () => go(text);
    return chip;
  }));
}

function events() {
  const chips = STAGES.filter(([key]) => key in frame.reached).map(([key, text]) => [text, frame.reached[key] ? "yes" : ""]);
  if (frame.reached.distractor_approached) chips.push(["went to another thing first", "no"]);
  $("stages").replaceChildren(...chips.map(([text, kind]) => Object.assign(document.createElement("li"), { textContent: text, className: kind })));
  const distance = frame.reached.smallest_distance;
  const lines = [["touched first", frame.touched && name(frame.touched)], ["moved first", frame.moved && name(frame.moved)],
    ["closest so far", distance === undefined ? null : `${(100 * distance).toFixed(1)} cm`]].filter(([, value]) => value);
  $("events").replaceChildren(...lines.flatMap(([term, value]) => [
    Object.assign(document.createElement("dt"), { textContent: term }), Object.assign(document.createElement("dd"), { textContent: value })]));
  $("check").textContent = frame.words === frame.checked
    ? "The simulator checks whether this was done."
    : `These are your words. The simulator checks only “${frame.checked}”.`;
  if (frame.action) MOVES.forEach((_, i) => {
    const value = Math.max(-1, Math.min(1, frame.action[i])), bar = bars[i];
    bar.style.left = `${50 + 50 * Math.min(0, value)}%`;
    bar.style.width = `${50 * Math.abs(value)}%`;
  });
}

const bars = MOVES.map(([low, high]) => {
  const line = document.createElement("div"), track = document.createElement("i"), bar = document.createElement("b");
  track.append(bar);
  line.append(Object.assign(document.createElement("span"), { textContent: low }), track, Object.assign(document.createElement("span"), { textContent: high }));
  $("moves").append(line);
  return bar;
});

function status() {
  const busy = state ? state.busy : "Starting", badge = $("badge");
  $("busy").hidden = !busy && frame !== null;
  $("busy-text").textContent = busy ? busy[0].toUpperCase() + busy.slice(1) : "Starting the simulator.";
  $("play").textContent = state && state.playing ? "Pause" : frame && frame.done ? "Play again" : "Play";
  if (frame) {
    const rate = state && state.playing && state.rate ? `, ${state.rate.toFixed(1)}× real time` : "";
    $("steps").textContent = `step ${frame.step} of ${frame.limit}${rate}`;
    badge.hidden = !frame.done && !frame.placed_by_hand;
    badge.className = frame.success ? "good" : "";
    badge.textContent = frame.success ? (frame.words === frame.checked ? "Done" : `It did: ${frame.checked}`)
      : frame.done ? "Out of steps" : "Moved by hand";
  }
  enable();
}

function enable() {
  const ready = socket && socket.readyState === WebSocket.OPEN && state && !state.busy && frame;
  for (const control of document.querySelectorAll("main button, main select, #arms input, #limit")) control.disabled = !ready;
  for (const close of document.querySelectorAll("#notices button")) close.disabled = false;
  if (ready) $("step").disabled = state.playing || frame.done;
}

// ---------------------------------------------------------------- small helpers

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

function segments(group, entries, pick) {
  group.replaceChildren(...entries.map(([value, text]) => {
    const button = Object.assign(document.createElement("button"), { textContent: text, type: "button", value });
    button.onclick = () => pick(button.value);
    return button;
  }));
}

function pressed(group, value) {
  for (const button of group.children) button.ariaPressed = String(button.value === value);
}

// ---------------------------------------------------------------- words and time

function go(text) {
  $("words").value = text;
  send({ do: "say", text, play: true });
}

$("say").onsubmit = (event) => { event.preventDefault(); go($("words").value); };
$("play").onclick = () => send({ do: state.playing ? "pause" : "play" });
$("step").onclick = () => send({ do: "step" });
$("again").onclick = () => send({ do: "again" });
$("limit").onchange = () => send({ do: "limit", steps: Math.round(Number($("limit").value)) });
$("strength").oninput = () => { $("heat").style.opacity = $("strength").value / 100; };

// ---------------------------------------------------------------- the scene

function showChoice(shown) {
  const key = JSON.stringify(shown);
  if (key === choiceShown) return;
  choiceShown = key;
  $("suite").value = shown.suite;
  listTasks(shown.task);
  $("placement").value = shown.placement;
  $("number").value = shown.number;
}

function listTasks(task) {
  const tasks = offered.suites[$("suite").value];
  fill($("task"), tasks.map((one) => [one.task, one.instruction]));
  if (task !== undefined) $("task").value = task;
  listPlacements();
}

function listPlacements() {
  const task = offered.suites[$("suite").value].find((one) => one.task === Number($("task").value));
  const before = $("placement").value;
  fill($("placement"), [...(task.wide ? [["wide", "anywhere, drawn by number"]] : []), ["official", "as LIBERO has them, 0 to 49"]]);
  if ([...$("placement").options].some((one) => one.value === before)) $("placement").value = before;
}

function choose(number) {
  choiceShown = ""; // it is shown again when it is there, or refused
  send({ do: "choose", suite: $("suite").value, task: Number($("task").value), placement: $("placement").value, number });
}

$("suite").onchange = () => { listTasks(); choose(0); };
$("task").onchange = () => { listPlacements(); choose(0); };
$("placement").onchange = () => choose(0);
$("set").onclick = () => choose(Math.round(Number($("number").value)));
$("shuffle").onclick = () => choose(Math.floor(Math.random() * ($("placement").value === "wide" ? 1000 : 50)));

// ---------------------------------------------------------------- moving things

function handles() {
  if (held) return;
  const shown = frame.step === 0 ? Object.entries(frame.handles) : [];
  $("drag-hint").hidden = !shown.length;
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.thing : null;
  $("handles").replaceChildren(...shown.map(([thing, [across, down]]) => handle(thing, across, down)));
  if (focused) for (const one of $("handles").children) if (one.dataset.thing === focused) one.focus();
}

function handle(thing, across, down) {
  const ring = document.createElement("button"), label = document.createElement("span");
  let place = [across, down];
  ring.type = "button";
  ring.dataset.thing = thing;
  ring.ariaLabel = `Move ${name(thing)}`;
  label.textContent = name(thing);
  ring.append(label);
  const show = () => {
    ring.style.left = `${100 * place[0]}%`;
    ring.style.top = `${100 * place[1]}%`;
    ring.classList.toggle("left", place[0] < 0.2);
    ring.classList.toggle("right", place[0] > 0.8);
  };
  const drop = () => {
    held = null;
    ring.classList.remove("held");
    if (place[0] !== across || place[1] !== down) send({ do: "put", name: thing, across: place[0], down: place[1] });
  };
  const within = (value) => Math.max(0, Math.min(1, value));
  ring.onpointerdown = (event) => {
    held = thing;
    ring.setPointerCapture(event.pointerId);
    ring.classList.add("held");
  };
  ring.onpointermove = (event) => {
    if (held !== thing) return;
    const box = $("screen").getBoundingClientRect();
    place = [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
    show();
  };
  ring.onpointerup = drop;
  ring.onpointercancel = () => { held = null; handles(); };
  ring.onkeydown = (event) => {
    const by = { ArrowLeft: [-NUDGE, 0], ArrowRight: [NUDGE, 0], ArrowUp: [0, -NUDGE], ArrowDown: [0, NUDGE] }[event.key];
    if (by) {
      event.preventDefault();
      place = [within(place[0] + by[0]), within(place[1] + by[1])];
      show();
    } else if (event.key === "Enter") {
      event.preventDefault();
      drop();
    } else if (event.key === "Escape") handles();
  };
  show();
  return ring;
}

status();
connect();
