// The transforms to choose from, searched by name and summary, and below them one line per problem.

const NOT_SELECTED = "not selected";
// A longer list is grouped by plugin.
const UNGROUPED_TRANSFORMS = 20;

// Which groups the person has opened or closed; of the others, those are open that have a step's transform.
const openedGroups = new Map();

// Every word must match. Names that start with the query come first, then names that contain it, then summaries.
function searchTransforms(transforms, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const rank = ({ name, summary, distribution }) => {
    const text = `${name} ${summary} ${distribution}`.toLowerCase();
    if (!words.every((word) => text.includes(word))) return 3;
    return !words.length || name.startsWith(words[0]) ? 0 : name.includes(words[0]) ? 1 : 2;
  };
  const ranked = transforms.map((transform) => [rank(transform), transform]).filter(([place]) => place < 3);
  return ranked.sort(([one], [other]) => one - other).map(([, transform]) => transform);
}

// choose(name) is the action of a row, add(name) that of its + button.
function drawCatalog(listing, query, current, choose, add) {
  const found = searchTransforms(listing.transforms, query);
  const draw = (transform) => drawRow(transform, current, choose, add);
  const isGrouped = !query.trim() && found.length > UNGROUPED_TRANSFORMS;
  byId("transforms").replaceChildren(...(isGrouped ? drawGroups(found, current, draw) : found.map(draw)));
  byId("found").textContent = query ? `${count(found.length, "transform")} found` : count(found.length, "transform");
}

function drawGroups(transforms, current, draw) {
  const groups = Map.groupBy(transforms, ({ plugin, distribution }) => `${plugin}, ${distribution}`);
  const sorted = [...groups].sort(([one], [other]) => (one < other ? -1 : 1));
  return sorted.map(([key, members]) => {
    const open = openedGroups.get(key) ?? members.some(({ name }) => current.includes(name));
    const number = element("span", { class: "fine" }, String(members.length));
    const title = element("summary", { title: members[0].distribution }, members[0].plugin, " ", number);
    const group = element("details", { open }, title, element("ul", {}, ...members.map(draw)));
    title.addEventListener("click", () => openedGroups.set(key, !group.open));
    return element("li", { class: "group" }, group);
  });
}

function drawRow(transform, current, choose, add) {
  const { name, summary, distribution, version } = transform;
  const isUsed = current.includes(name);
  const title = `${distribution} ${version}`.trim();
  const main = element(
    "button",
    { type: "button", class: "transform", title, "data-name": name, "aria-current": isUsed ? "true" : null, click: () => choose(name) },
    element("span", { class: "name" }, name, ...marks(transform)),
    element("span", { class: "fine" }, summary),
  );
  const label = `Add ${name} as a step`;
  const plus = button("+", () => add(name), { class: "quiet icon", "aria-label": label, title: label });
  return element("li", {}, main, plus);
}

function drawWarnings(listing, problems) {
  const failed = listing.plugins.filter(
    ({ state, reason }) => state !== "active" && !reason.startsWith(NOT_SELECTED) && (reason || !problems.length),
  );
  const lines = [
    ...problems.map((problem) => ["", problem]),
    ...failed.map(({ name, distribution, state, reason }) => [`${distribution}: ${name} ${state}`, reason || "(see the server's log)"]),
    ...listing.conflicts.map(({ name, message }) => [`${name} is ambiguous`, message]),
  ];
  const items = lines.map(([subject, reason]) => element("li", {}, element("strong", {}, subject), ` ${reason}`));
  byId("warnings").replaceChildren(element("h2", {}, "Needs attention"), element("ul", {}, ...items));
  byId("warnings").hidden = !lines.length;
}

// The arrow keys move between the search field and the rows.
function walkRows(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.altKey) return;
  const rows = document.querySelectorAll("#transforms .transform, #transforms summary");
  const stops = [byId("search"), ...Array.from(rows).filter((row) => row.checkVisibility())];
  const next = stops[stops.indexOf(document.activeElement) + step];
  if (!stops.includes(document.activeElement) || !next) return;
  event.preventDefault();
  next.focus();
}
