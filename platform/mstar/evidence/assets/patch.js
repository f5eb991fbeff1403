/* One patch enlarged, cut from the tiles: the same pixels that the slide is shown with. */
"use strict";
(() => {
  const tileUrl = (level, column, row) => `slide_files/${level}/${column}_${row}.jpg`;

  const load = (url) => new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = url;
  });

  /* The coarsest level on which the patch has at least as many pixels as it is shown with. */
  const levelFor = (image, size_l0, shown) => {
    let level = image.max_level;
    while (level > 0 && size_l0 / (image.downsample * 2 ** (image.max_level - level + 1)) >= shown) level -= 1;
    return level;
  };

  const drawPatch = async (canvas, image, x_l0, y_l0, size_l0) => {
    const ticket = (canvas.ticket = (canvas.ticket || 0) + 1);
    const level = levelFor(image, size_l0, canvas.width);
    const step = image.downsample * 2 ** (image.max_level - level);
    const [left, top, side] = [x_l0 / step, y_l0 / step, size_l0 / step];
    const [width, height] = [image.width, image.height].map((one) => Math.ceil(one / 2 ** (image.max_level - level)));
    const t = image.tile_px;
    const range = (start, limit) => [Math.max(0, Math.floor(start / t)),
      Math.min(Math.ceil(limit / t) - 1, Math.floor((start + side - 1e-6) / t))];
    const [[c0, c1], [r0, r1]] = [range(left, width), range(top, height)];
    const wanted = [];
    for (let row = r0; row <= r1; row++) for (let column = c0; column <= c1; column++) wanted.push([column, row]);
    const found = await Promise.all(wanted.map(([column, row]) => load(tileUrl(level, column, row))));
    if (canvas.ticket !== ticket) return false; // another patch was chosen meanwhile
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const zoom = canvas.width / side;
    found.forEach((tile, n) => {
      if (!tile) return;
      const [column, row] = wanted[n];
      const x = column * t - (column ? image.overlap_px : 0);
      const y = row * t - (row ? image.overlap_px : 0);
      pen.drawImage(tile, (x - left) * zoom, (y - top) * zoom, tile.naturalWidth * zoom, tile.naturalHeight * zoom);
    });
    return true;
  };

  window.mstarPatch = { drawPatch, tileUrl };
})();
