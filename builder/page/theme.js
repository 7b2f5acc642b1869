"use strict";
/* Light, dark, or as the system has it; remembered where the browser lets a page remember anything. */
{
  const KEY = "wishbone-theme";

  function remembered() {
    try {
      return localStorage.getItem(KEY);
    } catch (refused) {
      if (refused instanceof DOMException) return null;
      throw refused;
    }
  }

  function remember(theme) {
    try {
      localStorage.setItem(KEY, theme);
    } catch (refused) {
      if (!(refused instanceof DOMException)) throw refused;
    }
  }

  function show(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  /** Let the radio buttons inside `group` choose the colours. */
  function themeSwitch(group) {
    const buttons = [...group.querySelectorAll("input")];
    const first = buttons.find((button) => button.value === remembered()) ?? buttons[0];
    first.checked = true;
    show(first.value);
    group.addEventListener("change", (event) => {
      show(event.target.value);
      remember(event.target.value);
    });
  }

  globalThis.wishbone = { ...globalThis.wishbone, themeSwitch };
}
