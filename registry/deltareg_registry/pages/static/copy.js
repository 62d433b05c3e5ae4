"use strict";
// Every command gets a button that copies it; without scripts the text is there to be marked.
for (const code of document.querySelectorAll("[data-copy]")) {
  const group = code.closest(".command");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${code.textContent}`);
  const told = document.createElement("span");
  told.className = "unseen";
  told.setAttribute("role", "status");
  button.addEventListener("click", async () => {
    let done = "Copied";
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      // Browsers give the clipboard to pages of https alone: mark the text, for Ctrl+C.
      getSelection().selectAllChildren(code);
      done = "Marked";
    }
    button.textContent = done;
    told.textContent = `${done}: ${code.textContent}`;
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  group.append(button, told);
}
