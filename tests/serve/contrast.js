// Elements whose own text has less than 4.5 times the luminance of what is behind it (WCAG 2.2, 1.4.3), or the other way round.
(() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [red, green, blue] = rgba(colour).map((part) => linear(part / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (found) => {
    for (let at = found; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (rgba(colour)[3] > 250) return colour;
    }
    return "white";
  };
  const weak = new Set();
  for (const found of document.querySelectorAll("body *")) {
    const hasText = [...found.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.textContent.trim());
    if (!hasText || !found.checkVisibility() || found.closest(":disabled, .hidden, noscript")) continue;
    const pair = [luminance(getComputedStyle(found).color), luminance(behind(found))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) weak.add(`${found.tagName}.${found.className} ${ratio.toFixed(2)}`);
  }
  return [...weak];
})();
