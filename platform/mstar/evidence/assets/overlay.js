/* The patches over the slide: a canvas that is drawn anew whenever the slide moves.
   It knows the slide's place by one number and one point, both asked of OpenSeadragon. */
"use strict";
(() => {
  const unpack = (text, Kind) => {
    const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    return new Kind(bytes.buffer); // little-endian, as every machine that runs a browser is
  };

  class Overlay {
    constructor(viewer, data) {
      this.viewer = viewer;
      this.down = data.image.downsample;
      this.size = data.patches.size_l0;
      this.x = unpack(data.patches.x, Int32Array);
      this.y = unpack(data.patches.y, Int32Array);
      this.layers = data.layers.map((one) => ({
        ...one,
        raw: unpack(one.values, Float32Array),
        percentile: unpack(one.percentile, Float32Array),
      }));
      const shades = unpack(data.ramp, Uint8Array); // low to high: red, green, blue
      this.ramp = Array.from({ length: shades.length / 3 }, (_, n) => [...shades.slice(3 * n, 3 * n + 3)]);
      this.scale = "percentile";
      this.threshold = 0;
      this.opacity = 0.55;
      this.visible = true;
      this.chosen = -1;
      this.canvas = document.createElement("canvas");
      this.canvas.className = "scores";
      this.box = document.createElement("div");
      this.box.className = "chosen";
      this.box.hidden = true;
      viewer.canvas.append(this.canvas, this.box);
      for (const event of ["update-viewport", "resize", "open"]) viewer.addHandler(event, () => this.draw());
      this.show(0);
    }

    get layer() { return this.layers[this.at]; }
    get values() { return this.layer ? this.layer[this.scale] : null; }

    show(at) {
      this.at = at;
      this.order = null;
      this.range = this.layer ? this.rangeOf() : [0, 1];
      this.setThreshold(this.range[0]);
    }

    setScale(scale) {
      this.scale = scale;
      this.show(this.at);
    }

    rangeOf() {
      if (this.scale === "percentile") return [0, 100];
      let [low, high] = [Infinity, -Infinity];
      for (const value of this.values) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
      return low <= high ? [low, high] : [0, 1];
    }

    shareOf(value) {
      const [low, high] = this.range;
      return high > low ? (value - low) / (high - low) : 1;
    }

    setThreshold(value) {
      this.threshold = value;
      const last = this.ramp.length - 1;
      this.bins = this.ramp.map(() => []);
      this.shown = 0;
      const values = this.values || [];
      for (let n = 0; n < values.length; n++) {
        if (!(values[n] >= value)) continue; // NaN as well
        this.bins[Math.min(last, Math.floor(this.shareOf(values[n]) * (last + 1)))].push(n);
        this.shown += 1;
      }
      this.draw();
    }

    setOpacity(value) {
      this.opacity = value;
      this.canvas.style.opacity = String(this.visible ? value : 0);
    }

    toggle() {
      this.visible = !this.visible;
      this.setOpacity(this.opacity);
    }

    /* Where the slide is on the screen: pixel = offset + level-0 coordinate × scale. */
    place() {
      const image = this.viewer.world.getItemAt(0);
      if (!image) return null;
      const at = (x, y) => image.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
      const [zero, one] = [at(0, 0), at(1000, 0)];
      return { x: zero.x, y: zero.y, scale: (one.x - zero.x) / 1000 / this.down };
    }

    draw() {
      const place = this.place();
      if (!place) return;
      const { clientWidth: width, clientHeight: height } = this.viewer.canvas;
      const dense = window.devicePixelRatio || 1;
      const [w, h] = [Math.round(width * dense), Math.round(height * dense)];
      if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
      Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
      this.setOpacity(this.opacity);
      const pen = this.canvas.getContext("2d");
      pen.clearRect(0, 0, w, h);
      const [s, x0, y0] = [place.scale * dense, place.x * dense, place.y * dense];
      this.bins.forEach((bin, colour) => { // the highest last, on top
        pen.fillStyle = `rgb(${this.ramp[colour].join(",")})`;
        for (const n of bin) {
          const left = Math.round(x0 + this.x[n] * s);
          const top = Math.round(y0 + this.y[n] * s);
          if (left > w || top > h) continue;
          const right = Math.round(x0 + (this.x[n] + this.size) * s);
          const below = Math.round(y0 + (this.y[n] + this.size) * s);
          if (right < 0 || below < 0) continue;
          pen.fillRect(left, top, Math.max(1, right - left), Math.max(1, below - top));
        }
      });
      this.drawChosen(place);
    }

    drawChosen(place) {
      const n = this.chosen;
      this.box.hidden = n < 0;
      if (n < 0 || !place) return;
      const side = Math.max(8, this.size * place.scale + 6);
      Object.assign(this.box.style, { width: `${side}px`, height: `${side}px`,
        transform: `translate(${place.x + this.x[n] * place.scale - 3}px, ${place.y + this.y[n] * place.scale - 3}px)` });
    }

    choose(n) {
      this.chosen = n;
      this.drawChosen(this.place());
    }

    /* The patch at a level-0 point: of several that overlap, the one whose middle is nearest. */
    find(x, y) {
      let [found, least] = [-1, Infinity];
      for (let n = 0; n < this.x.length; n++) {
        const [dx, dy] = [x - this.x[n], y - this.y[n]];
        if (dx < 0 || dy < 0 || dx >= this.size || dy >= this.size) continue;
        const away = (dx - this.size / 2) ** 2 + (dy - this.size / 2) ** 2;
        if (away < least) [found, least] = [n, away];
      }
      return found;
    }

    /* Patches from the highest score to the lowest; without scores, as they are stored. */
    ranked() {
      if (!this.order) {
        this.order = Array.from(this.x.keys());
        const values = this.layer && this.layer.raw;
        const known = (n) => (Number.isNaN(values[n]) ? -Infinity : values[n]);
        if (values) this.order.sort((a, b) => known(b) - known(a) || a - b);
      }
      return this.order;
    }
  }

  window.mstarOverlay = { Overlay, unpack };
})();
