"use strict";
/* Text leaves the page by the clipboard or as a file. Neither needs a server, and both work from file://. */
{
  /** Put text on the clipboard; true if it is there. Pages without a secure origin go through a selection. */
  async function copyText(text) {
    if (navigator.clipboard) {
      try {
        await navigator.clipboard.writeText(text);
        return true;
      } catch (refused) {
        if (!(refused instanceof DOMException)) throw refused;
      }
    }
    const holder = document.createElement("textarea");
    holder.value = text;
    holder.className = "unseen";
    const focused = document.activeElement;
    document.body.append(holder);
    holder.select();
    const done = document.execCommand("copy");
    holder.remove();
    focused?.focus();
    return done;
  }

  /** Save text as a file of the given name. */
  function downloadText(name, text) {
    const address = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  globalThis.wishbone = { ...globalThis.wishbone, copyText, downloadText };
}
