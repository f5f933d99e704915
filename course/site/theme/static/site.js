// Opened from a disk, a page may not read other files, so search results come without their excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Sphinx takes a result's anchor for a CSS selector, and finds nothing where it has a dot or begins with a digit.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return; // only the search page has it
  const textOf = Search.htmlToText;
  Search.htmlToText = (page, anchor) => textOf(page, anchor && "#" + CSS.escape(anchor.slice(1)));
});

// The switch takes a search along to the other language.
document.addEventListener("DOMContentLoaded", () => {
  for (const link of document.querySelectorAll(".language-switch"))
    link.addEventListener("click", () => {
      if (location.search) link.search = location.search;
    });
});
