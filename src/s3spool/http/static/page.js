"use strict";
// The page of one daemon. All text of files and errors goes through textContent: names are chosen by strangers.

const POLL_MS = 1000;
const TIMEOUT_MS = 10000;
const PLOT_S = 300;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const STATES = ["settling", "queued", "uploading", "waiting", "parked", "uploaded"];
const samples = []; // {at, files, bytes}: counters of the last minutes
const get = (id) => document.getElementById(id);
const count = (value) => value.toLocaleString("en");

function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) { bytes /= 1024; unit += 1; }
  return `${bytes.toFixed(unit ? 1 : 0)} ${UNITS[unit]}`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} days`;
}

const time = (iso) => new Date(iso).toLocaleString();

async function ask(path, body) {
  const options = { signal: AbortSignal.timeout(TIMEOUT_MS), cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "Content-Type": "application/json", "X-S3Spool": "1" };
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function say(id, text, bad) {
  const line = get(id);
  line.hidden = !text;
  line.textContent = text;
  line.classList.toggle("bad", Boolean(bad));
}

function tiles(status) {
  const values = STATES.map((state) => [state, count(status.files[state])]);
  values.push(["bytes uploaded", size(status.bytes.uploaded)]);
  values.push(["oldest unsent", status.oldest_unsent_s ? duration(status.oldest_unsent_s) : "none"]);
  const list = get("tiles");
  if (list.childElementCount !== values.length) {
    list.replaceChildren(...values.map(([name]) => {
      const tile = document.createElement("div");
      tile.append(document.createElement("dt"), document.createElement("dd"));
      tile.firstChild.textContent = name;
      return tile;
    }));
  }
  values.forEach(([, value], place) => { list.children[place].lastChild.textContent = value; });
}

function plot(status) {
  const now = Date.now() / 1000;
  const last = samples.at(-1);
  if (last && status.files.uploaded < last.files) samples.length = 0; // the daemon was restarted
  samples.push({ at: now, files: status.files.uploaded, bytes: status.bytes.uploaded });
  while (samples[0].at < now - PLOT_S) samples.shift();
  const rates = samples.slice(1).map((sample, place) => ({
    at: sample.at,
    files: (sample.files - samples[place].files) / Math.max(0.001, sample.at - samples[place].at),
    bytes: (sample.bytes - samples[place].bytes) / Math.max(0.001, sample.at - samples[place].at),
  }));
  const top = Math.max(1, ...rates.map((rate) => rate.files));
  const points = rates.map((rate) => `${600 - (600 * (now - rate.at)) / PLOT_S},${118 - (114 * rate.files) / top}`);
  get("line").setAttribute("points", points.join(" "));
  const rate = rates.at(-1);
  get("rate").textContent = rate ? `${rate.files.toFixed(1)} files/s, ${size(rate.bytes)}/s (top ${top.toFixed(0)} files/s)` : "";
}

// One entry per file, kept while the file stays: a button does not lose the focus.
function files(state, rows, total, fill) {
  get(`${state}-count`).textContent = rows.length < total ? `${count(total)}, the first ${rows.length}` : count(total);
  const list = get(state);
  const before = new Map([...list.children].map((entry) => [entry.dataset.path, entry]));
  const entries = rows.map((row) => {
    const entry = before.get(row.path) || document.createElement("li");
    if (!entry.childElementCount) {
      entry.dataset.path = row.path;
      for (const kind of ["name", "detail"]) {
        const span = document.createElement("span");
        span.className = kind;
        entry.append(span);
      }
      entry.firstChild.textContent = row.name;
    }
    fill(entry, row);
    return entry;
  });
  const same = entries.length === list.childElementCount && entries.every((entry, place) => list.children[place] === entry);
  if (!same) list.replaceChildren(...entries);
}

function uploading(entry, row) {
  if (row.node) entry.children[1].textContent = `on ${row.node}`;
  if (row.bytes_uploaded === undefined) return; // a small file goes in one piece
  let bar = entry.querySelector("progress");
  if (!bar) {
    bar = document.createElement("progress");
    bar.setAttribute("aria-label", `progress of ${row.name}`);
    entry.append(bar);
  }
  bar.max = row.bytes || 1;
  bar.value = row.bytes_uploaded;
  entry.children[1].textContent = `${size(row.bytes_uploaded)} of ${size(row.bytes)}`;
}

function failed(entry, row) {
  const words = [`${row.error_code}: ${row.error}`, `attempt ${row.attempts}`];
  if (row.next_attempt) words.push(`next try ${time(row.next_attempt)}`);
  if (row.hint) words.push(row.hint);
  entry.children[1].textContent = words.join("; ");
  if (!entry.querySelector("button")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Retry";
    button.setAttribute("aria-label", `Retry ${row.name}`);
    button.addEventListener("click", () => order(button, "/api/retry", { paths: [row.path] }, () => `${row.name}: retried`));
    entry.append(button);
  }
}

function show(overview) {
  const { status } = overview;
  const { destination } = status;
  const paused = destination.state === "paused";
  const badge = get("state");
  badge.textContent = status.state;
  badge.className = `badge ${paused && !destination.by_hand ? "bad" : status.state === "running" ? "" : "warn"}`;
  document.title = `${status.state} · s3spool`;
  get("route").textContent = `${status.watch.directory} → s3://${destination.bucket}/${destination.prefix}` +
    (destination.endpoint ? ` at ${destination.endpoint}` : "");
  say("banner", paused ? `Uploads are paused since ${time(destination.since)}: ${destination.reason}` : "", !destination.by_hand);
  get("pausing").hidden = destination.by_hand;
  get("resume").hidden = !destination.by_hand;
  get("version").textContent = `s3spool ${status.version}, process ${status.pid}, since ${time(status.started)}`;
  get("nodes").textContent = status.nodes.map((node) => ` · ${node.this ? "node" : "beside node"} ${node.name}`).join("");
  tiles(status);
  plot(status);
  files("uploading", overview.uploading, Math.max(status.files.uploading, overview.uploading.length), uploading);
  files("parked", overview.parked, status.files.parked, failed);
  files("waiting", overview.waiting, status.files.waiting, failed);
}

async function refresh() {
  try {
    show(await ask("/api/overview"));
    say("offline", "");
  } catch (error) {
    say("offline", `The daemon does not answer (${error.message}). What is below is old.`, true);
  }
}

async function order(button, path, body, sentence) {
  button.disabled = true;
  try {
    say("result", sentence(await ask(path, body)));
  } catch (error) {
    say("result", error.message, true);
  }
  button.disabled = false;
  await refresh();
}

const released = (answer) => `${count(answer.released)} files are tried again now`;
get("retry-all").addEventListener("click", (event) => order(event.target, "/api/retry", { all: true }, released));
get("pause").addEventListener("click", (event) => {
  const reason = get("reason").value;
  order(event.target, "/api/pause", { reason }, () => "No new file is taken; uploads in flight finish");
});
get("resume").addEventListener("click", (event) => order(event.target, "/api/resume", {}, () => "Uploads go on"));
get("rescan").addEventListener("click", (event) => order(event.target, "/api/rescan", {}, () => "A scan of the folder was started"));

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
poll();
