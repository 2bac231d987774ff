// Shows a result as text, bytes, a picture, a page or a file. Whatever a result holds, nothing in it runs or is loaded:
// a picture cannot, and a page is in a sandbox, under this page's own policy.

let chosenView = null;
let previewUrl = null;

// result: {blob, type, text, bytes, isWhole}; the text is null if it is binary; text and bytes may be its beginning.
function drawResult(result) {
  const views = viewsOf(result);
  const view = views.includes(chosenView) ? chosenView : views[0];
  drawViewButtons(views, view, result);
  clearPreview();
  const isText = view in TEXTS;
  const text = isText ? TEXTS[view](result) : "";
  byId("result").hidden = !isText;
  byId("preview").hidden = isText;
  byId("result").textContent = text;
  if (!isText) PREVIEWS[view](result);
  const areLinesCut = text.length < result.text?.length;
  byId("beginning").hidden = !isText || view === "Bytes" || (result.isWhole && !areLinesCut);
  const part = areLinesCut ? count(SHOWN_LINES, "line") : sizeOf(SHOWN_BYTES);
  byId("beginning").replaceChildren(`The first ${part} of ${sizeOf(result.blob.size)}.`, saveButton(result, "quiet"));
  const isNothing = !result.blob.size;
  byId("copy-result").disabled = isNothing || (result.text === null ? !isText : !result.isWhole);
}

function drawViewButtons(views, current, result) {
  const choose = (view) => {
    chosenView = view;
    drawResult(result);
    byId("views").querySelector("[aria-pressed=true]").focus();
  };
  const buttons = views.map((view) => button(view, () => choose(view), { "aria-pressed": String(view === current) }));
  const gap = element("span", { class: "gap" });
  byId("views").replaceChildren(...buttons, gap, element("span", { class: "fine" }, result.type));
  byId("views").hidden = views.length < 2;
}

function clearPreview() {
  byId("preview").replaceChildren();
  if (previewUrl) URL.revokeObjectURL(previewUrl);
  previewUrl = null;
}

const TEXTS = {
  Text: ({ text }) => firstLines(text),
  Source: ({ text }) => firstLines(text),
  Bytes: ({ bytes, blob }) => hexDump(bytes, blob.size),
};

const PREVIEWS = { Picture: showPicture, Page: showPage, File: showFile };

function showPicture(result) {
  previewUrl = URL.createObjectURL(result.blob);
  const failed = () => picture.replaceWith(resultCard(result, "The browser cannot show this picture."));
  const picture = element("img", { src: previewUrl, alt: "The result, a picture", error: failed });
  byId("preview").replaceChildren(picture);
}

async function showPage(result) {
  const place = byId("preview").appendChild(element("div", {}));
  const html = await readHarmless(result.blob).catch(() => null);
  if (!place.isConnected) return; // something else is shown meanwhile
  if (html === null) return place.replaceWith(resultCard(result, "The browser cannot show this page."));
  previewUrl = URL.createObjectURL(new Blob(["<!doctype html>", html], { type: "text/html; charset=utf-8" }));
  const frame = element("iframe", { sandbox: true, src: previewUrl, title: "The result, as a page" });
  place.replaceWith(frame);
}

function showFile(result) {
  byId("preview").replaceChildren(resultCard(result));
}

function resultCard(result, remark = "") {
  return fileCard(suffixOf(result), result.type, [sizeOf(result.blob.size), remark], saveButton(result, "quiet primary"));
}

const saveButton = (result, style) => button(`Save as ${resultName(result)}`, () => saveResult(result), { class: style });

// A file that is not shown itself: a sign with its suffix, its name, facts on it, and buttons.
function fileCard(suffix, name, facts, ...buttons) {
  const about = element("div", {}, element("p", { class: "file-name" }, name));
  about.append(...facts.filter(Boolean).map((fact) => element("p", { class: "fine" }, fact)));
  const sign = element("span", { class: "file-sign", "aria-hidden": "true" }, suffix);
  return element("div", { class: "file-card" }, sign, about, element("div", { class: "file-buttons" }, ...buttons));
}

const resultName = (result) => `result.${suffixOf(result)}`;

// As plain bytes: browsers change the suffix where it does not fit to the type that they know.
function saveResult(result) {
  const url = URL.createObjectURL(new Blob([result.blob], { type: "application/octet-stream" }));
  element("a", { href: url, download: resultName(result) }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
