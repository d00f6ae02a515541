// How a chart looks on a page: colors and font from the page's style. Shared by reports and the page of the service.

function theme(legend, columns) {
  const style = getComputedStyle(document.documentElement);
  const [text, soft, line] = ["--text", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { labelColor: soft, titleColor: soft, titleFontWeight: 400, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontSize: 12, labelOverlap: true, labelSeparation: 6 };
  return {
    background: "transparent", font: getComputedStyle(document.body).fontFamily, view: { stroke: null }, axis: axis,
    legend: { ...legend, columns: columns, labelColor: text, titleColor: soft, labelFontSize: 12, symbolSize: 80 },
  };
}

// How many columns the legend of a layered chart has room for.
function legendColumns(spec, width) {
  const names = spec.layer.flatMap((layer) => layer.encoding?.color?.scale?.domain || []);
  const longest = Math.max(20, ...names.map((name) => String(name).length));
  return Math.max(1, Math.floor(width / Math.min(300, 40 + 7 * longest)));
}
