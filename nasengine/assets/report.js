"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const light = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#882255", "#332288", "#777722", "#117733"];
  const dark = ["#5ab0e6", "#ff8a4c", "#2bc79a", "#e39cc4", "#f2c14e", "#9bd8ff", "#e0709c", "#a99bff", "#c9c95a", "#6fcf8a"];
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const words = {
    train: "training", valid: "validation", supernet: "supernet, validation", derived: "derived, validation",
    parameters: "parameters", multiply_adds: "multiply-adds", latency: "latency (ms)", memory: "memory (MB)",
  };
  const scales = { latency: 1e3, memory: 1e-6 };
  const print = window.matchMedia("print");
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  const isDark = () => !printing && !print.matches && (root.dataset.theme ? root.dataset.theme === "dark" : scheme.matches);
  const colour = (place) => (isDark() ? dark : light)[place % light.length];
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const chosen = (name, otherwise) => (document.querySelector(`input[name="${name}"]:checked`) || { value: otherwise }).value;
  const short = (value) => (value === null || value === undefined ? "" : Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(5))));

  function wrapped(text) {
    const lines = [""];
    for (const word of String(text).match(/[^\s,|+]*[\s,|+]?/g)) {
      if ((lines[lines.length - 1] + word).length > 72) lines.push("");
      lines[lines.length - 1] += word;
    }
    return lines.slice(0, 12).map(escaped).join("<br>") + (lines.length > 12 ? " …" : "");
  }

  function axis(title, more) {
    return { title: { text: escaped(title), standoff: 8 }, gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true, ...more };
  }

  function layout(height, more) {
    return {
      height, margin: { l: 56, r: 16, t: 12, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--ink") }, hovermode: "closest",
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 }, align: "left", namelength: -1 },
      legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0 }, ...more,
    };
  }

  // Curves: the loss on the left, the measure on the right

  function curves(verb) {
    const runs = data.curves.filter((curve) => curve.verb === verb);
    const by = chosen("x", "epochs");
    const measure = runs[0].measure;
    const share = measure.endsWith("accuracy") ? { tickformat: ".0%" } : {};
    const single = new Set(runs.flatMap((run) => Object.keys(run.series).filter((name) => name.endsWith("_loss")))).size === 1;
    const traces = [];
    runs.forEach((run, place) => {
      let line = 0;
      for (const [name, values] of Object.entries(run.series)) {
        const part = name.split("_", 1)[0];
        const isLoss = name.endsWith("_loss");
        if (!isLoss && !name.endsWith(`_${measure}`)) continue;
        const many = runs.length > 1;
        const series = Object.keys(words).indexOf(part);
        const named = words[part] || name.replace(/_/g, " ");
        const key = many ? (single ? run.run : `${run.run}: ${named}`) : named;
        traces.push({
          x: run[by], y: values, name: escaped(key), mode: values.length > 60 ? "lines" : "lines+markers", type: "scatter",
          legendgroup: key, showlegend: !traces.some((trace) => trace.legendgroup === key), marker: { size: 5 },
          line: { color: many ? colour(place) : colour(series < 0 ? 4 + line : series), dash: many ? dashes[Math.max(series, 0) % 4] : "solid", width: 2 },
          xaxis: isLoss ? "x" : "x2", yaxis: isLoss ? "y" : "y2", hoverinfo: "text",
          text: values.map((value, row) => `${escaped(key)}<br>epoch ${run.epochs[row]}, ${short(run.seconds[row])} s<br>${isLoss ? "loss" : escaped(measure.replace(/_/g, " "))} ${share.tickformat && !isLoss && value !== null ? (100 * value).toFixed(2) + " %" : short(value)}`),
        });
        line += 1;
      }
    });
    return (width) => {
      const narrow = width < 640;
      const [left, right] = narrow ? [[0, 1], [0, 1]] : [[0, 0.46], [0.56, 1]];
      const [above, below] = narrow ? [[0.58, 1], [0, 0.42]] : [[0, 1], [0, 1]];
      const rows = traces.filter((trace) => trace.showlegend).length;
      const foot = 60 + 22 * Math.ceil(rows / Math.max(1, Math.floor(width / 230)));
      return [traces, layout((narrow ? 520 : 300) + foot, {
        margin: { l: 56, r: 16, t: 12, b: foot },
        legend: { orientation: "h", y: 0, yref: "container", yanchor: "bottom", x: 0 },
        xaxis: axis(by, { domain: left, anchor: "y", rangemode: "tozero" }), yaxis: axis("loss", { domain: above, anchor: "x" }),
        xaxis2: axis(by, { domain: right, anchor: "y2", rangemode: "tozero" }), yaxis2: axis(measure.replace(/_/g, " "), { domain: below, anchor: "x2", ...share }),
      })];
    };
  }

  // Weights of the choices

  const leading = (options, column) => options[column.reduce((best, value, place) => (value > column[best] ? place : best), 0)];

  function weightsMap(of) {
    const run = data.weights[of];
    const labels = Object.keys(run.choices);
    const columns = (choice) => run.epochs.map((_, epoch) => choice.weights.map((row) => row[epoch]));
    const z = labels.map((label) => columns(run.choices[label]).map((column) => Math.max(...column)));
    const text = labels.map((label) => columns(run.choices[label]).map((column, epoch) => `${escaped(label)}, epoch ${run.epochs[epoch]}<br>${escaped(leading(run.choices[label].options, column))} ${short(Math.max(...column))}`));
    const even = Math.min(...labels.map((label) => 1 / run.choices[label].options.length));
    const trace = {
      type: "heatmap", x: run.epochs, y: labels.map(escaped), z, text, hoverinfo: "text", xgap: 1, ygap: 1,
      colorscale: [[0, css("--low")], [1, css("--high")]], zmin: even, zmax: Math.max(2 * even, ...z.flat()), colorbar: { thickness: 12, title: { text: "largest weight", side: "right" } },
    };
    const whole = run.epochs.length < 20 ? { dtick: 1 } : {};
    return [[trace], layout(80 + 18 * labels.length, { yaxis: { autorange: "reversed", automargin: true, tickfont: { size: 11 }, dtick: 1 }, xaxis: axis("epoch", whole) })];
  }

  function weights(of) {
    const run = data.weights[of];
    const label = document.getElementById(`choice-${of}`).value;
    const choice = run.choices[label];
    const traces = choice.options.map((option, place) => ({
      x: run.epochs, y: choice.weights[place], name: escaped(option), mode: "lines+markers", marker: { size: 5 },
      line: { color: colour(place), width: 2 }, hoverinfo: "text", text: choice.weights[place].map((value, epoch) => `${escaped(option)}<br>epoch ${run.epochs[epoch]}: ${short(value)}`),
    }));
    return [traces, layout(340, { xaxis: axis("epoch", run.epochs.length < 20 ? { dtick: 1 } : {}), yaxis: axis(`weight in ${label}`), showlegend: true, legend: {} })];
  }

  // Candidates and fronts

  const told = (point) => wrapped(point.text) + (point.command ? `<br><i>click to copy: ${point.command.startsWith("nasengine export") ? "export" : "train"}</i>` : "");
  const around = (spread) => (spread === null || spread === undefined ? "" : ` ± ${short(spread)}`);

  function candidates(of) {
    const { points } = data.candidates[of];
    const traces = [];
    [["measured", 0], ["trained", 1]].forEach(([name, place]) => {
      const known = points.filter((point) => point.predicted !== null && point[name] !== null);
      if (!known.length) return;
      const spread = (key) => ({ type: "data", array: known.map((point) => point[key] || 0), visible: known.some((point) => point[key]), thickness: 0.8, width: 0, color: css("--soft") });
      traces.push({
        x: known.map((point) => point[name]), y: known.map((point) => point.predicted), mode: "markers", type: "scatter", name: `predicted against ${name}`,
        marker: { color: colour(place), size: name === "trained" ? 11 : 7, symbol: name === "trained" ? "diamond" : "circle", opacity: 0.8 },
        error_y: spread("uncertainty"), error_x: name === "trained" ? spread("trained_deviation") : undefined, customdata: known, hoverinfo: "text",
        text: known.map((point) => `rank ${point.rank}${point.source ? ` (${escaped(point.source)})` : ""}<br>predicted ${short(point.predicted)}${around(point.uncertainty)}<br>${name} ${short(point[name])}${name === "trained" ? around(point.trained_deviation) : ""}<br>${told(point)}`),
      });
    });
    const all = traces.flatMap((trace) => [...trace.x, ...trace.y]);
    const ends = [Math.min(...all), Math.max(...all)];
    traces.unshift({ x: ends, y: ends, mode: "lines", name: "equal", line: { color: css("--soft"), dash: "dash", width: 1 }, hoverinfo: "skip" });
    return [traces, layout(440, { xaxis: axis("measured or trained score"), yaxis: axis("predicted score") })];
  }

  function front(of) {
    const found = data.fronts[of];
    const cost = chosen(`cost-${of}`, found.costs[0]);
    const scale = scales[cost] || 1;
    const x = (point) => point.costs[cost] * scale;
    const numbers = (point) => found.costs.map((name) => `${words[name]} ${short(point.costs[name] * (scales[name] || 1))}`).join("<br>");
    const text = (point) => `${escaped(found.score)} ${short(point.score)}${around(point.uncertainty)}<br>${numbers(point)}<br>${told(point)}`;
    const edge = found.edges[cost].map((row) => found.points[row]);
    const dots = (points, name, marker, more) => ({ x: points.map(x), y: points.map((point) => point.score), mode: "markers", type: "scatter", name, marker, customdata: points, hoverinfo: "text", text: points.map(text), ...more });
    const traces = [
      dots(found.cloud, "candidates", { color: css("--soft"), size: 5, opacity: 0.45 }),
      { x: edge.map(x), y: edge.map((point) => point.score), mode: "lines", line: { shape: "hv", color: colour(0), width: 2 }, hoverinfo: "skip", showlegend: false },
      dots(found.points, "front", { color: found.points.map((point) => (edge.includes(point) ? colour(0) : css("--panel"))), size: 12, line: { color: colour(0), width: 2 } }),
    ];
    const costs = [...found.points, ...found.cloud].map(x);
    const log = Math.min(...costs) > 0 && Math.max(...costs) > 20 * Math.min(...costs);
    const scores = found.points.map((point) => point.score);
    const [low, top] = [Math.min(...scores), Math.max(...scores)];
    const least = Math.max(Math.min(low, ...found.cloud.map((point) => point.score)), 3 * low - 2 * top);
    const room = 0.06 * (top - least) || Math.abs(top) * 0.05 || 1;
    return [traces.filter((trace) => trace.x.length), layout(460, { xaxis: axis(words[cost], log ? { type: "log", dtick: "D2" } : { rangemode: "normal" }), yaxis: axis(found.score, { range: [least - room, top + room] }), showlegend: found.cloud.length > 0 })];
  }

  function learning(of) {
    const found = data.candidates[of].learning;
    const sizes = [...new Set(found.map((point) => point.labels))];
    const groups = sizes.map((size) => found.filter((point) => point.labels === size).map((point) => point.tau));
    const means = groups.map((taus) => taus.reduce((sum, tau) => sum + tau, 0) / taus.length);
    const deviations = groups.map((taus, place) => (taus.length > 1 ? Math.sqrt(taus.reduce((sum, tau) => sum + (tau - means[place]) ** 2, 0) / (taus.length - 1)) : 0));
    const text = means.map((mean, place) => `${sizes[place]} labels<br>tau ${short(mean)}${around(deviations[place])}, ${groups[place].length} fits`);
    const trace = { x: sizes, y: means, text, hoverinfo: "text", mode: "lines+markers", marker: { size: 7 }, line: { color: colour(0), width: 2 }, error_y: { type: "data", array: deviations, color: colour(0), thickness: 1 } };
    return [[trace], layout(260, { xaxis: axis("labels", { type: "log", tickvals: sizes }), yaxis: axis("tau on labels held out") })];
  }

  function labels() {
    const trace = { x: data.labels, type: "histogram", nbinsx: 40, marker: { color: colour(0) }, hovertemplate: "%{x}: %{y}<extra></extra>" };
    return [[trace], layout(280, { xaxis: axis("score of a label"), yaxis: axis("labels"), bargap: 0.05 })];
  }

  // Drawing

  const kinds = { "curves-search": () => curves("search"), "curves-train": () => curves("train"), "weights-map": weightsMap, weights, candidates, learning, front, labels };
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], displayModeBar: "hover" };

  function draw(chart) {
    const made = kinds[chart.dataset.chart](Number(chart.dataset.of));
    const [traces, shape] = typeof made === "function" ? made(chart.clientWidth) : made;
    if (printing) shape.width = 680;
    chart.style.height = `${shape.height}px`;
    return Plotly.react(chart, traces, shape, config);
  }

  const charts = [...document.querySelectorAll(".chart")];
  const redraw = () => charts.forEach(draw);
  for (const chart of charts) {
    draw(chart);
    chart.on("plotly_click", ({ points }) => {
      const { customdata } = points[0];
      if (chart.dataset.chart === "weights-map") {
        const select = document.getElementById(`choice-${chart.dataset.of}`);
        select.selectedIndex = points[0].pointIndex[0];
        select.dispatchEvent(new Event("change", { bubbles: true }));
      } else if (customdata && customdata.command) copy(customdata.command);
    });
    chart.on("plotly_hover", ({ points }) => { chart.style.cursor = points.some((point) => point.customdata && point.customdata.command) ? "pointer" : ""; });
  }

  document.addEventListener("change", (event) => {
    if (event.target.matches(".switch input")) redraw();
    if (event.target.matches("select.choice")) draw(document.querySelector(`.chart[data-chart="weights"][data-of="${event.target.dataset.of}"]`));
  });
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  scheme.addEventListener("change", redraw);
  print.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => { printing = true; redraw(); });
  window.addEventListener("afterprint", () => { printing = false; redraw(); });

  // Copying

  async function copy(text) {
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      const area = document.createElement("textarea");
      const before = document.activeElement;
      area.value = text;
      area.readOnly = true;
      area.style.cssText = "position:fixed;opacity:0;top:0;left:0";
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      if (before && before.focus) before.focus({ preventScroll: true });
    }
    note(done ? "Copied" : "Copy this", text);
  }

  let timer = 0;
  function note(title, text) {
    const place = document.getElementById("note");
    const code = document.createElement("code");
    code.textContent = text;
    place.replaceChildren(title, code);
    place.classList.add("shown");
    clearTimeout(timer);
    timer = setTimeout(() => place.classList.remove("shown"), 4000);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (button) copy(button.dataset.copy);
  });
})();
