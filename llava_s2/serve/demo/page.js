// Names for screen readers that Gradio's components lack.
new MutationObserver(() => {
  for (const message of document.querySelectorAll("[data-testid=user]:not([role]), [data-testid=bot]:not([role])"))
    message.setAttribute("role", "group");
  for (const button of document.querySelectorAll(".image-container > button:not([aria-label])"))
    button.setAttribute("aria-label", button.closest(".block").querySelector("label")?.textContent.trim() || "image");
  for (const outer of document.querySelectorAll("button:not([role]):has(button)")) {
    outer.setAttribute("role", "group");
    outer.setAttribute("tabindex", "-1");
  }
}).observe(document.documentElement, { childList: true, subtree: true });
