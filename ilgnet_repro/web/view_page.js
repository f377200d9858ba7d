"use strict";
// A net as a graph: what is drawn and listed comes from /api/view, the values of a layer from /api/view/weights and /blob.
(() => {
  const { api, drawing, element, find } = ilgnet;
  const graph = find("graph");
  const number = new URLSearchParams(location.search).get("net") ?? "0"; // of the net, where a server has several
  const world = drawing("g");
  const place = { x: 0, y: 0, scale: 1 };
  const pointers = new Map();
  let net = null;
  let boxes = [];
  let chosen = -1;
  let image = null;
  let asked = 0;
  let matches = [];
  let sorted = { key: "", descending: false };

  const asking = (parts = {}) => new URLSearchParams({ net: number, ...parts });
  const whole = (number) => number.toLocaleString("en");
  const short = (value) => {
    if (value === null || value === undefined) return "none";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e5 || size < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  };
  const part = (value, of) => (of > 0 ? value / of : 0);
  const percent = (share) => `${(100 * share).toFixed(share >= 0.1 ? 1 : 2)} %`;
  const shape = (lengths) => (lengths === null ? "unknown"
    : lengths.length ? lengths.map((length) => length ?? "?").join(" × ") : "scalar");

  // ------------------------------------------------------------------ the graph

  function draw() {
    const tip = drawing("marker", {
      id: "tip", viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto",
      markerUnits: "userSpaceOnUse",
    }, drawing("path", { d: "M0,0 L8,4 L0,8 z", class: "tip" }));
    graph.replaceChildren(drawing("defs", {}, tip), world);
    for (const edge of net.drawing.edges) {
      world.append(drawing("path", {
        class: "edge", d: edge.path, "marker-end": "url(#tip)", "data-from": edge.from, "data-to": edge.to,
      }, drawing("title", {}, edge.blob)));
    }
    boxes = net.drawing.boxes.map((box, position) => {
      const node = drawing("g", {
        class: `box ${box.kind}`, role: "button", tabindex: position ? -1 : 0, "aria-label": box.title,
        "aria-pressed": "false", onclick: () => { choose(box.row, true); }, onfocus: () => { show(box); },
        onkeydown: (event) => { keyOnBox(event, position); },
      }, drawing("title", {}, box.title),
      drawing("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: 5 }));
      box.lines.forEach((line, number) => {
        node.append(drawing("text", {
          x: box.x + 8, y: box.y + 8 + 16 * (number + 0.78), class: number ? null : "name",
        }, line));
      });
      world.append(node);
      return { ...box, node };
    });
    fit(false);
  }

  function move() {
    world.setAttribute("transform", `translate(${place.x},${place.y}) scale(${place.scale})`);
  }

  // The whole net, or its width from the top.
  function fit(isWhole) {
    const { width, height } = graph.getBoundingClientRect();
    const across = width / net.drawing.width;
    place.scale = isWhole ? Math.min(across, height / net.drawing.height, 1) : Math.max(Math.min(across, 1), 0.35);
    place.x = (width - net.drawing.width * place.scale) / 2;
    place.y = isWhole ? (height - net.drawing.height * place.scale) / 2 : 0;
    if (!isWhole && place.x < 0) {
      const first = boxes[0];
      place.x = width / 2 - (first.x + first.width / 2) * place.scale;
    }
    move();
  }

  function zoom(factor, x, y) {
    const size = graph.getBoundingClientRect();
    const [atX, atY] = [x ?? size.width / 2, y ?? size.height / 2];
    const scale = Math.min(Math.max(place.scale * factor, 0.005), 4);
    place.x = atX - (atX - place.x) * (scale / place.scale);
    place.y = atY - (atY - place.y) * (scale / place.scale);
    place.scale = scale;
    move();
  }

  // Where a move ends: some of the net stays in view.
  function moved(dx, dy) {
    const size = graph.getBoundingClientRect();
    const within = (value, view, net) => Math.min(Math.max(value, Math.min(view - net, 0) - view / 4),
      Math.max(view - net, 0) + view / 4);
    return [within(place.x + dx, size.width, net.drawing.width * place.scale),
      within(place.y + dy, size.height, net.drawing.height * place.scale)];
  }

  function canPan(dx, dy) {
    const [x, y] = moved(dx, dy);
    return Math.abs(x - place.x) > 0.5 || Math.abs(y - place.y) > 0.5;
  }

  function pan(dx, dy) {
    [place.x, place.y] = moved(dx, dy);
    move();
  }

  // Bring a box into view, at a size at which it can be read.
  function show(box) {
    const { width, height } = graph.getBoundingClientRect();
    if (place.scale < 0.5) place.scale = 0.8;
    const [left, top] = [box.x * place.scale + place.x, box.y * place.scale + place.y];
    const [right, bottom] = [left + box.width * place.scale, top + box.height * place.scale];
    if (left < 0 || right > width) place.x = width / 2 - (box.x + box.width / 2) * place.scale;
    if (top < 0 || bottom > height) place.y = height / 2 - (box.y + box.height / 2) * place.scale;
    move();
  }

  function keyOnBox(event, position) {
    const here = boxes[position];
    const same = (box) => Math.abs(box.y + box.height / 2 - here.y - here.height / 2) < 1;
    let next = -1;
    if (event.key === "Enter" || event.key === " ") choose(here.row, true);
    else if (event.key === "ArrowDown") next = Math.min(position + 1, boxes.length - 1);
    else if (event.key === "ArrowUp") next = Math.max(position - 1, 0);
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = boxes.length - 1;
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const way = event.key === "ArrowRight" ? 1 : -1;
      const beside = boxes.filter((box) => same(box) && (box.x - here.x) * way > 0)
        .sort((a, b) => (a.x - b.x) * way);
      next = beside.length ? boxes.indexOf(beside[0]) : position;
    } else return;
    event.preventDefault();
    event.stopPropagation();
    if (next >= 0) focusBox(next);
  }

  function focusBox(position) {
    for (const box of boxes) box.node.setAttribute("tabindex", -1);
    boxes[position].node.setAttribute("tabindex", 0);
    boxes[position].node.focus({ preventScroll: true });
  }

  graph.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit(true);
    else return;
    event.preventDefault();
  });
  graph.addEventListener("wheel", (event) => {
    const size = graph.getBoundingClientRect();
    // At the net's end the wheel moves the page.
    const isAtEnd = !event.ctrlKey && !event.metaKey && !canPan(-event.deltaX, -event.deltaY);
    if (isAtEnd) return;
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) {
      zoom(Math.exp(-event.deltaY / 300), event.clientX - size.left, event.clientY - size.top);
      return;
    }
    pan(event.shiftKey ? -event.deltaY : -event.deltaX, event.shiftKey ? 0 : -event.deltaY);
  }, { passive: false });
  graph.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, moved: 0 });
  });
  graph.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    last.moved += Math.abs(dx) + Math.abs(dy);
    // A click on a box is no movement: the pointer is captured once it is dragged.
    if (last.moved < 5) return;
    if (!graph.hasPointerCapture(event.pointerId)) {
      graph.setPointerCapture(event.pointerId);
      graph.classList.add("moving");
    }
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    if (others.length === 1) {
      const size = graph.getBoundingClientRect();
      const before = Math.hypot(last.x - others[0].x, last.y - others[0].y);
      const after = Math.hypot(event.clientX - others[0].x, event.clientY - others[0].y);
      zoom(before > 0 ? after / before : 1, others[0].x - size.left, others[0].y - size.top);
    } else {
      pan(dx, dy);
    }
    [last.x, last.y] = [event.clientX, event.clientY];
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    graph.addEventListener(kind, (event) => {
      pointers.delete(event.pointerId);
      graph.classList.remove("moving");
    });
  }
  find("closer").addEventListener("click", () => { zoom(1.25); });
  find("farther").addEventListener("click", () => { zoom(0.8); });
  find("whole").addEventListener("click", () => { fit(true); });

  // ------------------------------------------------------------------ search

  function search() {
    const text = find("search").value.trim().toLowerCase();
    const rows = net.layers.map((layer, row) => row).filter((row) => text
      && `${net.layers[row].name}\n${net.layers[row].type}`.toLowerCase().includes(text));
    matches = rows;
    const held = new Set(rows.map((row) => boxOf(row)));
    for (const box of boxes) box.node.classList.toggle("match", held.has(box));
    find("found").textContent = text ? `${whole(rows.length)} of ${whole(net.layers.length)} layers` : "";
  }

  find("search").addEventListener("input", search);
  find("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
    if (!matches.length) return;
    const position = matches.findIndex((row) => row > chosen);
    const row = matches[position < 0 ? 0 : position];
    choose(row, false);
    show(boxOf(row));
    find("found").textContent = `${matches.indexOf(row) + 1} of ${whole(matches.length)}: ${net.layers[row].name}`;
  });

  // ------------------------------------------------------------------ the table

  const COLUMNS = [
    ["row", "#", "number row-number"], ["name", "Layer", ""], ["type", "Type", ""], ["shape", "Shape", "shape"],
    ["parameters", "Parameters", "number"], ["multiply_adds", "Multiply-adds", "number"],
    ["share", "Share", "number share-column"],
  ];
  const cell = {
    row: (layer) => layer.row, name: (layer) => layer.name, type: (layer) => layer.type,
    shape: (layer) => layer.tops.map((top) => shape(top.shape)).join(", "),
    parameters: (layer) => layer.parameters, multiply_adds: (layer) => layer.multiply_adds,
    share: (layer) => part(layer.multiply_adds, net.products),
  };
  const isNumber = (key) => !["name", "type", "shape"].includes(key);

  function heads() {
    find("heads").replaceChildren(...COLUMNS.map(([key, title, style]) => element("th", {
      scope: "col", class: style || null,
      "aria-sort": sorted.key === key ? (sorted.descending ? "descending" : "ascending") : null,
    }, element("button", { type: "button", onclick: () => { sort(key); } },
      title + (sorted.key === key ? (sorted.descending ? " ↓" : " ↑") : "")))));
  }

  function sort(key) {
    const descending = sorted.key === key ? !sorted.descending : isNumber(key) && key !== "row";
    sorted = { key, descending };
    table();
    find("heads").children[COLUMNS.findIndex((column) => column[0] === key)].firstChild.focus();
  }

  function table() {
    heads();
    const value = cell[sorted.key || "row"];
    const rows = [...net.layers].sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      const order = typeof first === "number" ? first - second : first.localeCompare(second, "en", { numeric: true });
      return (sorted.descending ? -order : order) || a.row - b.row;
    });
    find("rows").replaceChildren(...rows.map((layer) => element("tr", {
      "data-row": layer.row, class: layer.row === chosen ? "chosen" : null,
    }, ...COLUMNS.map(([key, , style]) => element("td", { class: style || null },
      key === "name" ? element("button", { type: "button", onclick: () => { choose(layer.row, true); show(boxOf(layer.row)); } }, layer.name)
        : key === "share" ? (layer.multiply_adds ? percent(cell.share(layer)) : "")
          : typeof cell[key](layer) === "number" && key !== "row" ? (cell[key](layer) ? whole(cell[key](layer)) : "")
            : String(cell[key](layer)))))));
  }

  // ------------------------------------------------------------------ a layer

  const boxOf = (row) => boxes.findLast((box) => box.rows.includes(row)) ?? boxes[0];

  function pair(term, ...parts) {
    return [element("dt", {}, term), element("dd", {}, ...parts)];
  }

  function share(value, of) {
    const fraction = part(value, of);
    const bar = element("span");
    bar.style.width = `${100 * fraction}%`;
    return [whole(value), value ? ` (${percent(fraction)} of the net)` : "",
      value ? element("span", { class: "share", "aria-hidden": "true" }, bar) : null].filter((one) => one !== null);
  }

  function choose(row, isAsked) {
    chosen = row;
    const layer = net.layers[row];
    const box = boxOf(row);
    for (const one of boxes) {
      one.node.classList.toggle("chosen", one === box);
      one.node.setAttribute("aria-pressed", String(one === box));
    }
    for (const edge of world.querySelectorAll(".edge")) {
      const position = String(boxes.indexOf(box));
      edge.classList.toggle("near", edge.dataset.from === position || edge.dataset.to === position);
    }
    for (const line of find("rows").children) line.classList.toggle("chosen", line.dataset.row === String(row));
    find("layer-title").textContent = layer.name;
    const ends = (what, list) => (list.length ? pair(what, ...list.flatMap((one, number) => [
      number ? element("br") : "", element("span", { class: "mono" }, one.name), " ", element("span", { class: "shown-shape" }, shape(one.shape))])) : []);
    find("layer").replaceChildren(
      element("span", { class: "kind" }, layer.type), layer.in_place ? element("span", { class: "kind" }, "in place") : "",
      box.rows.length > 1 ? element("div", { class: "siblings", role: "group", "aria-label": "Layers in this box" },
        ...box.rows.map((other) => element("button", {
          type: "button", "aria-pressed": String(other === row), onclick: () => { choose(other, true); },
        }, net.layers[other].name))) : "",
      ...["problem", "need", "note"].filter((key) => layer[key]).map((key) => element("p", {
        class: key === "note" ? "soft" : "problem",
      }, layer[key])),
      element("dl", {}, ...ends("reads", layer.bottoms), ...ends("writes", layer.tops),
        ...pair("parameters", ...share(layer.parameters, net.parameters)),
        ...pair("multiply-adds", ...share(layer.multiply_adds, net.products))),
    );
    find("weights").replaceChildren();
    find("values").replaceChildren();
    find("fields").replaceChildren();
    if (isAsked && matchMedia("(max-width: 62rem)").matches) find("panel").scrollIntoView({ block: "start" });
    details(row);
  }

  async function details(row) {
    const number = ++asked;
    const layer = net.layers[row];
    const isCurrent = () => number === asked;
    try {
      const found = await (await api(`/api/view/layer?${asking({ row })}`)).json();
      if (!isCurrent()) return;
      if (found.fields) {
        find("fields").replaceChildren(element("h3", {}, "As it is written"), element("pre", { tabindex: 0 }, found.fields));
      }
      if (layer.blobs.length) {
        find("weights").replaceChildren(element("h3", {}, "Weights"), element("dl", {}, ...layer.blobs.flatMap(
          (blob) => pair(blob.name, shape(blob.shape)))));
      }
      if (net.why) {
        find("values").replaceChildren(element("h3", {}, "Values"), element("p", { class: "soft" }, `Shapes only: ${net.why}`));
        return;
      }
      values(row, 0);
      const held = await (await api(`/api/view/weights?${asking({ row })}`)).json();
      if (isCurrent() && held.length) {
        find("weights").replaceChildren(element("h3", {}, "Weights"), ...held.map((blob) => summary(blob, [])));
      }
    } catch (error) {
      if (isCurrent()) find("weights").append(element("p", { class: "problem", role: "alert" }, error.message));
    }
  }

  // Ask for the statistics of what a layer writes, for the image that was chosen or for seeded inputs.
  async function values(row, top) {
    const number = asked;
    const layer = net.layers[row];
    if (!layer.tops.length) return;
    const status = element("p", { class: "soft", role: "status" }, "Computing…");
    const result = element("div", {});
    find("values").replaceChildren(element("h3", {}, "Values"), chooser(row, top),
      layer.tops.length > 1 ? element("div", { class: "siblings", role: "group", "aria-label": "Values that it writes" },
        ...layer.tops.map((one, position) => element("button", {
          type: "button", "aria-pressed": String(position === top), onclick: () => { values(row, position); },
        }, one.name))) : "", status, result);
    try {
      const options = { method: "POST" };
      if (image) {
        options.body = new FormData();
        options.body.append("files", image);
      }
      const found = await (await api(`/api/view/blob?${asking({ row, top })}`, options)).json();
      if (number !== asked) return;
      status.textContent = `From ${found.from}.`;
      result.replaceChildren(summary(found, found.channels));
    } catch (error) {
      if (number !== asked) return;
      status.textContent = "";
      result.replaceChildren(element("p", { class: "problem", role: "alert" }, error.message));
    }
  }

  function chooser(row, top) {
    const input = element("input", {
      id: "image", type: "file", class: "hidden-visually", accept: "image/*",
      onchange: (event) => { take(event.target.files[0] ?? null, row, top); },
    });
    return element("div", {
      class: "choose", ondragover: (event) => { event.preventDefault(); event.currentTarget.classList.add("over"); },
      ondragleave: (event) => { event.currentTarget.classList.remove("over"); },
      ondrop: (event) => { event.preventDefault(); take(event.dataTransfer.files[0] ?? image, row, top); },
    }, element("p", {}, image ? `Image: ${image.name}` : "Seeded inputs. Drop an image here, or"),
    element("label", { class: "button within", for: "image" }, "Choose an image", input),
    image ? element("button", { type: "button", onclick: () => { take(null, row, top); } }, "Without it") : null);
  }

  function take(file, row, top) {
    image = file;
    values(row, top);
  }

  function summary(found, channels) {
    const part = element("div", { class: "summary" });
    const bad = found.nan + found.infinite;
    part.append(element("dl", {},
      ...pair(found.blob, shape(found.shape)),
      ...pair("min, max", `${short(found.min)}, ${short(found.max)}`),
      ...pair("mean", `${short(found.mean)} ± ${short(found.deviation)}`),
      ...pair("zeros", found.zeros === null ? "none" : percent(found.zeros)),
      ...pair("NaN", bad ? element("strong", { class: "problem" }, `${whole(found.nan)} NaN, ${whole(found.infinite)} infinite`) : "0")));
    if (found.histogram) part.append(...bars(found));
    if (channels.length) {
      part.append(element("p", { class: "small soft" }, `The first ${channels.length} channels`),
        element("div", { class: "channels", role: "img", "aria-label": `The first ${channels.length} channels of ${found.blob} as grey images` },
          ...channels.map(grey)));
    }
    return part;
  }

  function bars(found) {
    const most = Math.max(...found.histogram, 1);
    const wide = 100 / found.histogram.length;
    const label = `Histogram of ${found.blob} from ${short(found.min)} to ${short(found.max)}`;
    return [
      drawing("svg", { class: "bars", viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": label },
        ...found.histogram.map((number, position) => {
          const high = number ? Math.max(40 * (number / most), 0.5) : 0;
          return drawing("rect", { x: position * wide, y: 40 - high, width: wide * 0.92, height: high },
            drawing("title", {}, whole(number)));
        })),
      element("p", { class: "ends", "aria-hidden": "true" }, element("span", {}, short(found.min)), element("span", {}, short(found.max))),
    ];
  }

  function grey(channel) {
    const canvas = element("canvas", { width: channel.width, height: channel.height });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(channel.width, channel.height);
    const bytes = atob(channel.pixels);
    for (let at = 0; at < bytes.length; at += 1) {
      const value = bytes.charCodeAt(at);
      pixels.data.set([value, value, value, 255], 4 * at);
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  // ------------------------------------------------------------------ the start

  async function start() {
    try {
      net = await (await api(`/api/view?${asking()}`)).json();
    } catch (error) {
      find("form").textContent = "";
      find("problem").replaceChildren(element("p", { class: "problem" }, error.message));
      return;
    }
    net.products = net.layers.reduce((sum, layer) => sum + layer.multiply_adds, 0);
    document.title = `${net.name} · ilgnet`;
    find("net").textContent = net.net || net.name;
    find("form").textContent = `${net.name}: ${net.form}`;
    const fact = (value, name) => element("li", {}, element("b", {}, value), " ", element("span", {}, name));
    find("facts").replaceChildren(fact(whole(net.layers.length), "layers"), fact(whole(net.parameters), "parameters"),
      fact(whole(net.multiply_adds), "multiply-adds per image"),
      ...net.inputs.map((one) => fact(shape(one.shape), `input ${one.name}`)),
      ...(net.outputs.length ? [element("li", {}, element("span", {}, `outputs: ${net.outputs.join(", ")}`))] : []));
    find("notes").replaceChildren(...net.notes.map((note) => element("li", {}, note)));
    find("notes").hidden = !net.notes.length;
    find("content").hidden = false;
    draw();
    table();
  }

  start();
})();
