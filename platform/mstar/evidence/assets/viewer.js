/* The page: the slide, the controls, the chosen patch. */
"use strict";
(() => {
  const data = window.MSTAR_VIEW;
  const { Overlay, unpack } = window.mstarOverlay;
  const { drawPatch, tileUrl } = window.mstarPatch;
  const $ = (id) => document.getElementById(id);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  const viewer = OpenSeadragon({
    element: $("slide"),
    drawer: "canvas",
    tileSources: {
      width: data.image.width, height: data.image.height,
      tileSize: data.image.tile_px, tileOverlap: data.image.overlap_px,
      minLevel: 0, maxLevel: data.image.max_level, getTileUrl: tileUrl,
    },
    showNavigationControl: false, showNavigator: true, navigatorPosition: "BOTTOM_RIGHT",
    navigatorSizeRatio: 0.16, navigatorAutoFade: true, navigatorBackground: "#ffffff",
    navigatorBorderColor: "#555555", navigatorDisplayRegionColor: "#b00020",
    animationTime: still ? 0 : 0.5, maxZoomPixelRatio: 4, minZoomImageRatio: 0.7, visibilityRatio: 0.3,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { clickToZoom: false }, gestureSettingsPen: { clickToZoom: false },
  });
  viewer.canvas.setAttribute("aria-label", "Slide: arrow keys move, plus and minus zoom, 0 shows all of it");
  viewer.canvas.setAttribute("role", "application");
  const overlay = new Overlay(viewer, data);
  const count = data.patches.count;

  /* ---- numbers as text */
  const number = (value) => {
    if (Number.isNaN(value)) return "none";
    const size = Math.abs(value);
    return size && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : value.toPrecision(3);
  };
  const percentile = (value) => (Number.isNaN(value) ? "none" : value.toFixed(1));
  const plain = (value) => value.toLocaleString("en");
  const element = (name, text, more = {}) => Object.assign(document.createElement(name), { textContent: text }, more);
  const rows = (list, pairs) => list.replaceChildren(...pairs.flatMap(([a, b]) => [element("dt", a), element("dd", b)]));

  /* ---- scores */
  const told = () => {
    const [low, high] = overlay.range;
    const says = overlay.scale === "percentile" ? percentile : number;
    $("threshold-text").textContent = `${says(overlay.threshold)} and above`;
    $("opacity-text").textContent = `${Math.round(overlay.opacity * 100)} %`;
    $("ramp-low").textContent = says(low);
    $("ramp-high").textContent = says(high);
    $("shown").textContent = `${plain(overlay.shown)} of ${plain(count)} patches shown` +
      (overlay.visible ? "" : "; scores are off (o)");
  };
  const resetThreshold = () => {
    const [low, high] = overlay.range;
    const slider = $("threshold");
    Object.assign(slider, { min: 0, max: 1000, step: 1, value: 0, disabled: high <= low });
    told();
  };
  const thresholdOf = (slider) => {
    const [low, high] = overlay.range;
    return slider.value === slider.min ? low : low + ((high - low) * slider.value) / 1000;
  };
  const setUpScores = () => {
    $("overlay-controls").hidden = false;
    $("layer").replaceChildren(...data.layers.map((one, at) => element("option", one.label, { value: at })));
    const pen = $("ramp").getContext("2d");
    for (let x = 0; x < 256; x++) {
      pen.fillStyle = `rgb(${overlay.ramp[Math.floor((x * overlay.ramp.length) / 256)].join(",")})`;
      pen.fillRect(x, 0, 1, 1);
    }
    $("layer").addEventListener("change", (event) => {
      overlay.show(Number(event.target.value));
      resetThreshold();
      if (overlay.chosen >= 0) tell(overlay.chosen);
    });
    document.querySelectorAll("input[name=scale]").forEach((one) => one.addEventListener("change", () => {
      overlay.setScale(one.value);
      resetThreshold();
    }));
    $("threshold").addEventListener("input", (event) => {
      overlay.setThreshold(thresholdOf(event.target));
      event.target.setAttribute("aria-valuetext", $("threshold-text").textContent);
      told();
    });
    $("opacity").addEventListener("input", (event) => {
      overlay.setOpacity(event.target.value / 100);
      told();
    });
    resetThreshold();
  };

  /* ---- the chosen patch */
  const sentences = data.sentences && {
    ...data.sentences,
    index: unpack(data.sentences.index, Int32Array),
    similarity: unpack(data.sentences.similarity, Float32Array),
  };
  const tell = (n) => {
    const [x, y, size] = [overlay.x[n], overlay.y[n], data.patches.size_l0];
    $("patch").hidden = false;
    $("hint").hidden = true;
    $("go").disabled = false;
    const rank = overlay.ranked().indexOf(n) + 1;
    const where = `x ${plain(x)}, y ${plain(y)} at level 0`;
    $("patch-said").textContent = overlay.layer
      ? `Patch ${plain(n)}, ${where}: ${number(overlay.layer.raw[n])}, percentile ` +
        `${percentile(overlay.layer.percentile[n])}; ${plain(rank)} of ${plain(count)} by ${overlay.layer.label}`
      : `Patch ${plain(n)}, ${where}`;
    $("patch-scores").closest("table").hidden = !overlay.layers.length;
    $("patch-scores").replaceChildren(...overlay.layers.map((one, at) => {
      const row = element("tr", "", { className: at === overlay.at ? "current" : "" });
      row.append(element("th", one.label, { scope: "row" }), element("td", number(one.raw[n])),
        element("td", percentile(one.percentile[n])));
      return row;
    }));
    const micron = data.slide.mpp ? ` (${number(size * data.slide.mpp)} µm)` : "";
    rows($("patch-facts"), [["top-left corner", `${plain(x)}, ${plain(y)}`], ["side", `${plain(size)} px${micron}`],
      ["number", plain(n)]]);
    tellSentences(n);
  };
  const tellSentences = (n) => {
    if (!sentences) return;
    const items = [];
    for (let at = n * sentences.shown; at < (n + 1) * sentences.shown; at++) {
      const place = sentences.index[at];
      if (place < 0) continue;
      const item = element("li", sentences.texts[place]);
      item.append(element("small", `similarity ${sentences.similarity[at].toFixed(3)}; from the report of ${sentences.cases[place]}`));
      items.push(item);
    }
    $("sentences").replaceChildren(...(items.length ? items : [element("li", "This patch has no features to look sentences up with.")]));
  };
  const choose = (n) => {
    overlay.choose(n);
    page.drawn = drawPatch($("patch-picture"), data.image, overlay.x[n], overlay.y[n], data.patches.size_l0);
    tell(n);
    $("patch-picture").scrollIntoView({ block: "nearest" });
  };
  const goTo = (n) => {
    const [size, down] = [data.patches.size_l0, data.image.downsample];
    const image = viewer.world.getItemAt(0);
    const side = 6 * size;
    const box = [overlay.x[n] + size / 2 - side / 2, overlay.y[n] + size / 2 - side / 2, side, side].map((one) => one / down);
    viewer.viewport.fitBounds(image.imageToViewportRectangle(...box), still);
  };
  const step = (by) => {
    const order = overlay.ranked();
    const at = overlay.chosen < 0 ? (by > 0 ? -1 : 1) : order.indexOf(overlay.chosen);
    const n = order[Math.min(Math.max(at + by, 0), order.length - 1)];
    choose(n);
    goTo(n);
  };
  const setUpPatches = () => {
    $("patch-section").hidden = false;
    viewer.addHandler("canvas-click", (event) => {
      if (!event.quick) return;
      const point = viewer.world.getItemAt(0).viewerElementToImageCoordinates(event.position);
      const n = overlay.find(point.x * data.image.downsample, point.y * data.image.downsample);
      if (n >= 0) choose(n);
    });
    $("next").addEventListener("click", () => step(1));
    $("previous").addEventListener("click", () => step(-1));
    $("go").addEventListener("click", () => goTo(overlay.chosen));
    if (!sentences) return;
    $("sentence-section").hidden = false;
    $("sentence-note").textContent =
      "Nearest neighbours in the space of texts, not a finding: something is always nearest, true of this patch or not. " +
      `Chosen from ${plain(sentences.chosen_from)} of ${plain(sentences.in_reports)} sentences, by ` +
      (sentences.space === "projection" ? "the projection of stage 2." : "the aggregator's patch tokens.");
  };

  /* ---- scale bar */
  const drawScale = () => {
    const place = overlay.place();
    if (!place || !data.slide.mpp) return;
    const micron = data.slide.mpp / place.scale; // of one pixel of the screen
    const power = 10 ** Math.floor(Math.log10(150 * micron));
    const length = [5, 2, 1].map((one) => one * power).find((one) => one <= 150 * micron);
    $("scale-line").style.width = `${length / micron}px`;
    $("scale-text").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} µm`;
  };

  /* ---- the rest */
  const zoomBy = (by) => { viewer.viewport.zoomBy(by); viewer.viewport.applyConstraints(); };
  $("zoom-in").addEventListener("click", () => zoomBy(1.6));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.6));
  $("home").addEventListener("click", () => viewer.viewport.goHome());
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  });
  const toggle = () => { overlay.toggle(); told(); };
  const KEYS = count ? { n: () => step(1), p: () => step(-1), g: () => overlay.chosen >= 0 && goTo(overlay.chosen), o: toggle } : {};
  addEventListener("keydown", (event) => {
    const typing = ["SELECT", "INPUT", "TEXTAREA"].includes(event.target.tagName);
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  viewer.addHandler("canvas-key", (event) => { // OpenSeadragon would turn or flip the slide
    if (/^[rf]$/i.test(event.originalEvent.key)) event.preventDefaultAction = true;
  });
  viewer.addHandler("tile-load-failed", () => {
    $("trouble").hidden = false;
    $("trouble").textContent = "A part of the slide could not be loaded. Is `mstar view` still running?";
  });
  viewer.addHandler("update-viewport", drawScale);
  $("scale-bar").hidden = !data.slide.mpp;
  const made = [...new Map(data.layers.map((one) => [one.source, one.made_by])).values()].flat();
  rows($("facts"), [...data.facts, ["patches", plain(count)], ...made, ["mstar", data.version]]);
  if (data.layers.length) setUpScores();
  if (count) setUpPatches();
  const page = (window.mstarView = { viewer, overlay, choose, data, drawn: null });
})();
