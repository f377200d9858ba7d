"use strict";
{
  const { api, drawing, element, find, pause } = ilgnet;
  const CHUNK = 4; // images of a request
  const CHUNK_BYTES = 1 << 20; // of a request of several images: large ones are scored one by one
  const AT_ONCE = 4; // requests under way
  const SCORES_FIRST = 3000; // milliseconds in which no thumbnails are drawn beside the scores
  const SHOWN = 200; // rows that are added at a time
  const BINS = 20;
  const MARGIN = 65536; // bytes of a request that are no image
  const MOST_FILES = Number(find("drop").dataset.mostFiles);
  const MOST_BODY = Number(find("drop").dataset.mostBody);

  let nets = [];
  let folders = [];
  let items = []; // what was added, in that order
  let sorting = { key: "0", down: true };
  let shown = SHOWN;
  let queue = [];
  let working = 0;
  let thumbsFrom = 0; // the time from which thumbnails are drawn
  let bare = []; // items whose rows have no thumbnail yet
  let open = null; // the item in the dialog
  let ordered = []; // the ranking

  // ---------------------------------------------------------------- adding images

  function added(name, source) {
    return { name, source, records: nets.map(() => null), url: null, row: null };
  }

  function add(fresh) {
    if (!fresh.length) return;
    items.push(...fresh);
    for (const item of fresh) {
      if (item.source.file && item.source.file.size > MOST_BODY - MARGIN) {
        const error = `${item.name}: has ${item.source.file.size.toLocaleString("en")} bytes; at most ${(MOST_BODY - MARGIN).toLocaleString("en")} are taken`;
        item.records = nets.map(() => ({ name: item.name, error }));
      } else {
        queue.push(item);
      }
    }
    if (!working) {
      thumbsFrom = performance.now() + SCORES_FIRST;
      pause(SCORES_FIRST).then(changed);
    }
    changed();
    while (working < AT_ONCE && queue.length) work();
  }

  // Take the next few images of one place that fit into a request.
  function nextChunk() {
    const chunk = [];
    let bytes = MARGIN;
    while (queue.length && chunk.length < Math.min(CHUNK, MOST_FILES)) {
      const { source } = queue[0];
      const size = source.file ? source.file.size : 0;
      const isAlike = !chunk.length || chunk[0].source.folder === source.folder;
      if (!isAlike || (chunk.length && bytes + size > Math.min(CHUNK_BYTES, MOST_BODY))) break;
      bytes += size;
      chunk.push(queue.shift());
    }
    return chunk;
  }

  function asked(chunk) {
    const { folder } = chunk[0].source;
    if (folder !== undefined) {
      const body = JSON.stringify({ folder, images: chunk.map((item) => item.source.id) });
      return ["/api/folder/", { method: "POST", body, headers: { "Content-Type": "application/json" } }];
    }
    const body = new FormData();
    for (const item of chunk) body.append("files", item.source.file, item.name);
    return ["/api/", { method: "POST", body }];
  }

  async function scoreChunk(chunk) {
    const [path, options] = asked(chunk);
    for (let net = 0; net < nets.length; net += 1) {
      try {
        const records = await (await api(`${path}score?net=${net}`, options)).json();
        chunk.forEach((item, index) => { item.records[net] = records[index]; });
      } catch (error) {
        for (const item of chunk) item.records[net] = { name: item.name, error: `${item.name}: ${error.message}` };
      }
      changed();
    }
  }

  async function work() {
    working += 1;
    while (queue.length) await scoreChunk(nextChunk());
    working -= 1;
    changed();
  }

  const isDone = (item) => item.records.every((record) => record !== null);
  const errorOf = (item) => item.records.find((record) => record?.error)?.error ?? "";
  const scoreOf = (item, net) => item.records[net]?.score ?? null;

  // Read the files of dropped folders; a drop without entries is a list of files.
  async function filesOf(transfer) {
    const entries = [...transfer.items].map((one) => one.webkitGetAsEntry?.()).filter((entry) => entry);
    const plain = [...transfer.files];
    if (!entries.some((entry) => entry.isDirectory)) return plain;
    const found = [];
    const walk = async (entry) => {
      if (found.length >= 10000) return;
      if (entry.isFile) {
        found.push(await new Promise((resolve, reject) => { entry.file(resolve, reject); }));
        return;
      }
      const reader = entry.createReader();
      for (;;) {
        const part = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
        if (!part.length) return;
        for (const inner of part) await walk(inner);
      }
    };
    for (const entry of entries) await walk(entry);
    // Of a folder only images are taken; a file that is dropped by itself is named if it is none.
    return found.filter((file) => file.type.startsWith("image/") || /\.(heic|heif|jp2|tiff?|p[gpn]m)$/i.test(file.name));
  }

  const addFiles = (files) => add(files.map((file) => added(file.name, { file })));

  // ---------------------------------------------------------------- showing

  let isDrawing = false;
  function changed() {
    if (isDrawing) return;
    isDrawing = true;
    requestAnimationFrame(() => { isDrawing = false; draw(); });
  }

  function draw() {
    const done = items.filter(isDone);
    const bad = done.filter(errorOf);
    const good = items.filter((item) => !errorOf(item) && item.records.some((record) => record));
    const progress = find("progress");
    progress.hidden = done.length === items.length;
    progress.max = Math.max(items.length, 1);
    progress.value = done.length;
    find("status").textContent = statusOf(done.length, bad.length);
    find("bad").hidden = !bad.length;
    find("bad-list").replaceChildren(...bad.map((item) => element("li", {}, errorOf(item))));
    find("results").hidden = !good.length;
    find("histograms").replaceChildren(...nets.map((net, index) => histogram(net, index, good)));
    drawRanking(good);
    drawThumbs();
  }

  // Browsers decode whole images for thumbnails, which takes as long as scoring them.
  function drawThumbs() {
    if (working && performance.now() < thumbsFrom) return;
    for (const item of bare.splice(0)) showImage(item.button, item, 256);
  }

  function statusOf(done, bad) {
    if (!items.length) return "";
    const count = `${done - bad} of ${items.length} ${items.length === 1 ? "image" : "images"} scored`;
    if (done < items.length) return `${count}…`;
    return bad ? `${count}; ${bad} could not be scored.` : `${count}.`;
  }

  const isShare = (values) => values.every((value) => value >= 0 && value <= 1);
  const shownNumber = (value) => (Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 0.0001) ? value.toPrecision(4) : value.toFixed(4));
  const shortNumber = (value) => String(Number(value.toPrecision(3))).replace(/^-/, "−");

  // The range of a net's scores: 0 to 1 for probabilities, 1 to 10 for means of votes, else what there is.
  function rangeOf(good, net) {
    const values = good.map((item) => scoreOf(item, net)).filter((value) => value !== null);
    if (!values.length) return [0, 1];
    if (good.some((item) => item.records[net]?.distribution)) return [1, 10];
    if (isShare(values)) return [0, 1];
    const low = Math.min(...values);
    const high = Math.max(...values);
    return low < high ? [low, high] : [low - 0.5, high + 0.5];
  }

  function histogram(net, index, good) {
    const values = good.map((item) => scoreOf(item, index)).filter((value) => value !== null);
    const [low, high] = rangeOf(good, index);
    const counts = new Array(BINS).fill(0);
    for (const value of values) counts[Math.min(BINS - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * BINS)))] += 1;
    const most = Math.max(...counts, 1);
    const mean = values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
    const [width, height, foot] = [400, 96, 18];
    const picked = drawing("svg", { viewBox: `0 0 ${width} ${height + foot}`, role: "img" });
    const text = `Histogram of ${values.length} scores of ${net.name} from ${shortNumber(low)} to ${shortNumber(high)}: `
      + counts.map((count, bin) => (count ? `${count} near ${shortNumber(low + ((bin + 0.5) * (high - low)) / BINS)}` : "")).filter((one) => one).join(", ");
    picked.setAttribute("aria-label", text);
    counts.forEach((count, bin) => {
      if (!count) return;
      const tall = Math.max(2, (count / most) * (height - 12));
      picked.append(drawing("rect", { class: "bar", x: (bin * width) / BINS + 1, y: height - tall, width: width / BINS - 2, height: tall, rx: 2 },
        drawing("title", {}, String(count))));
    });
    picked.append(drawing("line", { class: "axis", x1: 0, x2: width, y1: height + 0.5, y2: height + 0.5 }));
    for (const [at, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      picked.append(drawing("text", { x: at * width, y: height + 14, "text-anchor": anchor }, shortNumber(low + at * (high - low))));
    }
    picked.append(drawing("text", { x: 0, y: 9 }, `${most}`));
    const caption = `${net.name}: ${values.length} ${values.length === 1 ? "score" : "scores"}, mean ${shownNumber(mean)}${!net.random ? "" : net.random_in_part ? ", of weights random in part" : ", of random weights"}`;
    return element("figure", { class: `histogram net-${index}` }, picked, element("figcaption", {}, caption));
  }

  // ---------------------------------------------------------------- the ranking

  function columns() {
    const found = [{ key: "name", name: "Image" }];
    nets.forEach((net, index) => found.push({ key: String(index), name: nets.length > 1 ? net.name : "Score", kind: "value" }));
    if (nets.length > 1) found.push({ key: "difference", name: "Difference", kind: "difference" });
    return found;
  }

  const difference = (item) => (scoreOf(item, 0) === null || scoreOf(item, 1) === null ? null : scoreOf(item, 1) - scoreOf(item, 0));

  function keyOf(item) {
    if (sorting.key === "name") return item.name.toLocaleLowerCase();
    return sorting.key === "difference" ? difference(item) : scoreOf(item, Number(sorting.key));
  }

  function sortItems(good) {
    const sign = sorting.down ? -1 : 1;
    return good.map((item, place) => [keyOf(item), place, item]).sort(([a, first], [b, second]) => {
      if (a === null || b === null) return (a === null) - (b === null) || first - second;
      if (a === b) return first - second;
      return (a < b ? -1 : 1) * sign;
    }).map(([, , item]) => item);
  }

  function drawHeads() {
    const cell = (text, kind) => element("th", { role: "columnheader", scope: "col", class: kind }, text);
    find("heads").replaceChildren(
      cell("#", "rank"),
      ...columns().map(({ key, name, kind }) => {
        const isSorted = sorting.key === key;
        const button = element("button", {
          type: "button",
          "data-key": key,
          onclick: () => {
            sorting = { key, down: isSorted ? !sorting.down : key !== "name" };
            drawHeads();
            changed();
            find("heads").querySelector(`[data-key="${key}"]`).focus();
          },
        }, isSorted ? `${name} ${sorting.down ? "↓" : "↑"}` : name);
        return element("th", { role: "columnheader", scope: "col", class: kind ?? "", "aria-sort": isSorted ? (sorting.down ? "descending" : "ascending") : null }, button);
      }),
    );
  }

  function drawRanking(good) {
    ordered = sortItems(good);
    const focused = document.activeElement;
    const rows = ordered.slice(0, shown).map((item, place) => rowOf(item, place + 1));
    const body = find("rows");
    const isSame = rows.length === body.children.length && rows.every((row, place) => body.children[place] === row);
    if (!isSame) body.replaceChildren(...rows);
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    find("more").hidden = ordered.length <= shown;
    nets.forEach((net, index) => {
      const [low, high] = rangeOf(good, index);
      for (const item of ordered.slice(0, shown)) {
        const value = scoreOf(item, index);
        if (value !== null) item.meters[index].style.width = `${Math.max(1, Math.min(100, ((value - low) / (high - low)) * 100))}%`;
      }
    });
  }

  function rowOf(item, rank) {
    if (!item.row) makeRow(item);
    item.rank.textContent = String(rank);
    nets.forEach((net, index) => {
      const record = item.records[index];
      if (!record || item.filled[index]) return;
      item.filled[index] = true;
      const spread = record.deviation === undefined ? "" : ` ± ${record.deviation.toFixed(2)}`;
      item.numbers[index].textContent = record.score === undefined ? "" : shownNumber(record.score) + spread;
      item.meanings[index].textContent = record.meaning ?? "";
    });
    if (item.gap && difference(item) !== null) {
      const value = difference(item);
      item.gap.textContent = `${value > 0 ? "+" : value < 0 ? "−" : ""}${shownNumber(Math.abs(value))}`;
    }
    return item.row;
  }

  function makeRow(item) {
    item.rank = element("td", { role: "cell", class: "rank" });
    item.filled = nets.map(() => false);
    item.numbers = nets.map(() => element("span", { class: "number" }));
    item.meanings = nets.map(() => element("div", { class: "meaning" }));
    item.meters = nets.map(() => element("span"));
    item.gap = nets.length > 1 ? element("td", { role: "cell", class: "difference" }) : null;
    const thumb = element("button", { type: "button", class: "thumb", "aria-label": `Heat map and details of ${item.name}`, onclick: () => show(item) });
    item.button = thumb;
    bare.push(item);
    item.row = element("tr", { role: "row" },
      item.rank,
      element("td", { role: "cell" }, element("div", { class: "image" }, thumb, element("span", {}, item.name))),
      ...nets.map((net, index) => element("td", { role: "cell", class: `value net-${index}` },
        nets.length > 1 ? element("span", { class: "of" }, net.name) : null, item.numbers[index], element("div", { class: "meter", "aria-hidden": "true" }, item.meters[index]), item.meanings[index])),
      item.gap);
  }

  // Put the image into a node once it is loaded; formats that the browser cannot show are said.
  async function showImage(node, item, side) {
    const none = () => node.replaceChildren(element("span", { class: "none" }, "no preview"));
    try {
      if (!item.url || (item.source.folder !== undefined && item.side < side)) {
        if (item.source.file) {
          item.url = URL.createObjectURL(item.source.file);
        } else {
          const { folder, id } = item.source;
          const query = new URLSearchParams({ folder, image: id, side });
          item.url = URL.createObjectURL(await (await api(`/api/folder/image?${query}`)).blob());
        }
        item.side = side;
      }
      const image = element("img", { alt: "", decoding: "async", loading: side <= 256 ? "lazy" : "eager", onerror: none, src: item.url });
      node.prepend(image);
    } catch (error) {
      none();
    }
  }

  // ---------------------------------------------------------------- one image

  function show(item) {
    open = item;
    const place = ordered.indexOf(item);
    find("detail-title").textContent = item.name;
    find("previous").disabled = place <= 0;
    find("next").disabled = place < 0 || place >= ordered.length - 1;
    find("panes").replaceChildren(...nets.map((net, index) => pane(item, net, index)));
    if (!find("detail").open) find("detail").showModal();
    if (!find("detail").contains(document.activeElement)) find("close").focus(); // a disabled button loses the focus
  }

  const move = (step) => {
    const item = ordered[ordered.indexOf(open) + step];
    if (item) show(item);
  };

  function pane(item, net, index) {
    const record = item.records[index] ?? {};
    const stage = element("div", { class: "stage" });
    const status = element("p", { class: "soft small", role: "status" });
    showImage(stage, item, 1024).then(() => drawBoxes(stage, record));
    const parts = [element("h3", {}, element("span", {}, net.name), element("span", {}, record.score === undefined ? "" : shownNumber(record.score)))];
    if (net.blobs.length) {
      const select = element("select", { id: `blob-${index}` },
        element("option", { value: "" }, "the last one"), ...net.blobs.map((blob) => element("option", { value: blob }, blob)));
      const redraw = () => drawHeat(item, index, select.value, stage, status);
      select.addEventListener("change", redraw);
      parts.push(element("div", { class: "choice" }, element("label", { for: `blob-${index}` }, "Heat map at blob"), select));
      redraw();
    } else {
      status.textContent = `No heat map: ${net.form} runs this file, without gradients.`;
    }
    return element("section", { class: `pane net-${index}`, "aria-label": net.name }, ...parts, stage, status, ...factsOf(record));
  }

  async function drawHeat(item, index, blob, stage, status) {
    const [path, options] = asked([item]);
    const query = new URLSearchParams(blob ? { net: index, blob } : { net: index });
    stage.dataset.wanted = query;
    status.textContent = "Computing the heat map…";
    try {
      const heat = await (await api(`${path}heat?${query}`, options)).json();
      if (stage.dataset.wanted !== String(query)) return; // another one was chosen since
      stage.querySelector("canvas")?.remove();
      stage.append(heatCanvas(heat));
      const about = !nets[index].random ? "" : nets[index].random_in_part ? " Some weights are random, so it may mean nothing." : " The weights are random, so it means nothing.";
      status.textContent = `Grad-CAM at ${heat.blob}: what speaks for value ${heat.index} of ${heat.output}.${about}`;
      const shares = branchShares(heat);
      for (const old of stage.parentElement.querySelectorAll(".branches")) old.remove();
      status.after(...[shares, ...heat.bars.map(columnsOf)].filter((part) => part));
    } catch (error) {
      stage.querySelector("canvas")?.remove();
      status.textContent = `No heat map: ${error.message}`;
    }
  }

  // The share of each branch of the net in the value, where the server gives it.
  function branchShares(heat) {
    if (!heat.branches.length) return null;
    return element("div", { class: "branches" }, element("p", { class: "small soft" }, "Share of each branch in the score"),
      element("ul", { class: "bars", "aria-label": "share of each branch in the score" },
        ...heat.branches.slice(0, 8).map(({ name, share }) => bar(name, share, `${(100 * share).toFixed(1)} %`))));
  }

  // Values that explain the score, as columns above and below zero.
  function columnsOf({ name, values }) {
    const [width, height] = [400, 80];
    const largest = Math.max(...values.map(Math.abs), 1e-30);
    const top = values.indexOf(Math.max(...values));
    const low = values.indexOf(Math.min(...values));
    const text = `${values.length} ${name}, from ${shortNumber(values[low])} (number ${low}) to ${shortNumber(values[top])} (number ${top})`;
    const chart = drawing("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text });
    values.forEach((value, at) => {
      const tall = (Math.abs(value) / largest) * (height / 2 - 1);
      chart.append(drawing("rect", { class: "bar", x: (at * width) / values.length, y: value > 0 ? height / 2 - tall : height / 2, width: Math.max(1, width / values.length - 1), height: tall },
        drawing("title", {}, `number ${at}: ${shortNumber(value)}`)));
    });
    chart.append(drawing("line", { class: "axis", x1: 0, x2: width, y1: height / 2, y2: height / 2 }));
    return element("figure", { class: "branches columns" }, chart, element("figcaption", { class: "small soft" }, text));
  }

  // A map from nothing over amber to red; the strength is the canvas's own opacity.
  function heatCanvas(heat) {
    const canvas = element("canvas", { width: heat.values[0].length, height: heat.values.length, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    heat.values.flat().forEach((value, at) => {
      pixels.data.set([255, Math.round(214 * (1 - value) ** 1.2), Math.round(40 * (1 - value)), Math.round(255 * value ** 0.7)], 4 * at);
    });
    context.putImageData(pixels, 0, 0);
    const [left, top, width, height] = heat.region.map((part) => `${100 * part}%`);
    Object.assign(canvas.style, { left, top, width, height, opacity: find("opacity").value / 100 });
    return canvas;
  }

  function drawBoxes(stage, record) {
    if (!record.boxes?.length || !record.width) return;
    stage.append(drawing("svg", { viewBox: `0 0 ${record.width} ${record.height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      ...record.boxes.map((box) => drawing("rect", { x: box.xmin, y: box.ymin, width: Math.max(0, box.xmax - box.xmin), height: Math.max(0, box.ymax - box.ymin) }))));
  }

  function bar(name, share, amount) {
    const meter = element("span");
    meter.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
    return element("li", {}, element("span", {}, name), element("span", { class: "amount" }, amount), element("div", { class: "meter", "aria-hidden": "true" }, meter));
  }

  function factsOf(record) {
    const parts = [];
    const list = (label, bars) => element("ul", { class: "bars", "aria-label": label }, ...bars);
    if (record.error) parts.push(element("p", { class: "problem" }, record.error));
    if (record.distribution) {
      parts.push(element("p", { class: "small" }, `Mean ${shownNumber(record.score)}, deviation ${record.deviation.toFixed(4)} of the votes:`));
      parts.push(list("distribution of votes", record.distribution.map((value, at) => bar(String(at + 1), value, `${(100 * value).toFixed(1)} %`))));
    } else if (record.boxes) {
      parts.push(list("detections", record.boxes.slice(0, 12).map((box) => bar(box.label, box.score, shownNumber(box.score)))));
    } else if (record.classes) {
      const largest = Math.max(...record.classes.map((one) => Math.abs(one.value)), 1e-30);
      const scale = record.classes.every((one) => one.value >= 0 && one.value <= 1) ? 1 : largest;
      parts.push(list("best classes", record.classes.map((one) => bar(one.label, one.value / scale, shownNumber(one.value)))));
    }
    for (const note of record.notes ?? []) parts.push(element("p", { class: "soft small" }, note));
    return parts;
  }

  // ---------------------------------------------------------------- nets

  function netCard(net, index) {
    const rows = [
      net.file ? ["File", net.file] : ["Net", net.net],
      ["SHA-256", net.sha256],
      ["Known as", net.release],
      ["Changed since", net.derived],
      ["Model", net.model ? net.model + (net.assumed ? " (assumed from the layers)" : "") : ""],
      ["Parameters", net.parameters === null ? "" : net.parameters.toLocaleString("en")],
      ["Computed by", net.form],
      ["Images", net.preprocessing + (net.assumed ? " (assumed)" : "")],
      ["Score", net.meaning],
      ["Labels", net.labels ? net.labels.toLocaleString("en") : ""],
      ...net.notes.map((note) => ["Note", note]),
    ].filter(([, value]) => value);
    const isUnknown = !net.random && !net.release && !net.sha256;
    if (isUnknown) rows.splice(1, 0, ["Provenance", "not a known release; nothing says how the weights were trained"]);
    return element("article", { class: `card net-${index}`, "aria-label": net.name },
      element("h3", {}, net.name, net.random ? element("span", { class: "badge" }, net.random_in_part ? "random weights in part" : "random weights") : null),
      element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
      element("p", {}, element("a", { href: `/view?net=${index}` }, `${net.name} as a graph`)));
  }

  function warningOf(net) {
    const what = net.random_in_part ? "random weights in part: its scores may mean nothing" : "random weights: its scores mean nothing";
    return element("div", { class: "banner" }, element("p", {}, element("strong", {}, `${net.name} has ${what}.`), ` (${net.random})`));
  }

  // ---------------------------------------------------------------- saving

  // A cell that no spreadsheet takes for a formula.
  function cell(value) {
    const text = String(value ?? "");
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  function save() {
    const heads = ["image", ...nets.flatMap((net) => [`${net.name} score`, `${net.name} meaning`]), "error"];
    const rows = sortItems(items.filter(isDone)).map((item) => [
      item.name, ...item.records.flatMap((record) => [record.score ?? "", record.meaning ?? ""]), errorOf(item),
    ]);
    const text = [heads, ...rows].map((row) => row.map(cell).join(",")).join("\n");
    const url = URL.createObjectURL(new Blob([`${text}\n`], { type: "text/csv" }));
    element("a", { href: url, download: "scores.csv" }).click();
    pause(10000).then(() => URL.revokeObjectURL(url));
  }

  function clear() {
    for (const item of items) if (item.url) URL.revokeObjectURL(item.url);
    items = [];
    queue = [];
    bare = [];
    shown = SHOWN;
    changed();
    find("files").focus();
  }

  // ---------------------------------------------------------------- start

  async function scoreFolder(event) {
    event.preventDefault();
    const folder = Number(find("folder").value);
    find("status").textContent = "Reading the folder…";
    try {
      const query = new URLSearchParams({ folder, path: find("below").value.trim() });
      const found = await (await api(`/api/folder?${query}`)).json();
      if (!found.images.length) throw new Error("The folder holds no images.");
      add(found.images.map(({ id, name }) => added(name, { folder, id })));
    } catch (error) {
      find("status").textContent = error.message;
    }
  }

  function listen() {
    const drop = find("drop");
    let depth = 0;
    const over = (isOver) => drop.classList.toggle("over", isOver);
    document.addEventListener("dragenter", (event) => { event.preventDefault(); depth += 1; over(true); });
    document.addEventListener("dragleave", () => { depth -= 1; if (depth <= 0) over(false); });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", async (event) => {
      event.preventDefault();
      depth = 0;
      over(false);
      addFiles(await filesOf(event.dataTransfer));
    });
    find("files").addEventListener("change", (event) => { addFiles([...event.target.files]); event.target.value = ""; });
    find("folder-form").addEventListener("submit", scoreFolder);
    find("save").addEventListener("click", save);
    find("clear").addEventListener("click", clear);
    find("more").addEventListener("click", () => { shown += SHOWN; changed(); });
    find("close").addEventListener("click", () => find("detail").close());
    find("previous").addEventListener("click", () => move(-1));
    find("next").addEventListener("click", () => move(1));
    find("detail").addEventListener("close", () => open?.button.focus());
    document.addEventListener("keydown", (event) => {
      if (!find("detail").open || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
      if (event.key === "ArrowLeft") move(-1);
      if (event.key === "ArrowRight") move(1);
    });
    find("opacity").addEventListener("input", (event) => {
      for (const canvas of find("panes").querySelectorAll("canvas")) canvas.style.opacity = event.target.value / 100;
    });
  }

  async function start() {
    try {
      nets = await (await api("/api/nets")).json();
      folders = await (await api("/api/folders")).json();
    } catch (error) {
      find("intro").textContent = error.message;
      return;
    }
    const names = nets.map((net) => net.name);
    find("intro").textContent = nets.length > 1
      ? `Drop images to see how ${names.join(" and ")} score and rank them.`
      : `Drop images to see how ${names[0]} scores and ranks them, and where in each it looks.`;
    find("warnings").replaceChildren(...nets.filter((net) => net.random).map(warningOf));
    find("nets").replaceChildren(...nets.map(netCard));
    find("folder").replaceChildren(...folders.map((folder, index) => element("option", { value: index }, folder)));
    find("folder-form").hidden = !folders.length;
    document.body.classList.toggle("stored", nets.some((net) => net.raw_pixels));
    drawHeads();
    listen();
    document.body.dataset.ready = "yes";
  }

  start();
}
