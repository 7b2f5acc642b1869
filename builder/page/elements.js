"use strict";
/* Elements from names and text. Text only ever becomes a text node, so nothing that a user types can become markup. */
{
  const SVG = "http://www.w3.org/2000/svg";

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, String(value));
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  /** An HTML element; children are nodes or strings, null is left out. */
  const html = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

  /** An SVG element, the same way. */
  const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

  globalThis.wishbone = { ...globalThis.wishbone, html, svg };
}
