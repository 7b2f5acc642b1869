"use strict";
/*
 * Plain values as text, the same to the byte as wishbone.config.emit in Python.
 *
 * Numbers: whole ones below 1e16 have digits only; others are the shortest digits that read back as the same double, with
 * a point between 1e-4 and 1e16, else with an exponent without plus sign or leading zeros. YAML 1.1 readers take 5e-6 for
 * text, so YAML alone gets 5.0e-6 and 1.0e+20. Text is quoted in ASCII, for YAML and Python with \UXXXXXXXX above U+FFFF,
 * for JSON with surrogate pairs.
 */
{
  const { constants } = typeof require === "undefined" ? globalThis.wishbone : require("../data/constants.js");
  const { ESCAPES, JSON_WORDS, PLAIN, PLAIN_FIRST, PYTHON_WORDS, WHOLE, WIDTH, WORDS } = constants["config.emit"];

  /** A finite number as reasons, JSON and Python have it. */
  function numberText(number) {
    if (!Number.isFinite(number)) throw new RangeError(`${number} is not a finite number`);
    const size = Math.abs(number);
    if (Number.isInteger(number) && size < WHOLE) return String(number === 0 ? 0 : number);
    if (size >= 1e-4 && size < WHOLE) return String(number);
    return number.toExponential().replace("e+", "e");
  }

  /** A finite number that readers of YAML 1.1 and 1.2 take for the same number. */
  function yamlNumber(number) {
    const [digits, exponent] = numberText(number).split("e");
    if (exponent === undefined) return digits;
    return `${digits.includes(".") ? digits : `${digits}.0`}e${exponent.startsWith("-") ? "" : "+"}${exponent}`;
  }

  const hex = (code, digits) => code.toString(16).padStart(digits, "0");

  function letter(one) {
    if (one in ESCAPES) return ESCAPES[one];
    if (one >= " " && one <= "~") return one;
    const code = one.codePointAt(0);
    return code <= 0xffff ? `\\u${hex(code, 4)}` : `\\U${hex(code, 8)}`;
  }

  /** Text in double quotes, ASCII alone; a literal of YAML and of Python. */
  const quoted = (text) => `"${[...text].map(letter).join("")}"`;

  /** Text in double quotes, ASCII alone; a literal of JSON. */
  const jsonQuoted = (text) => `"${text.split("").map(letter).join("")}"`;

  /** Text as YAML, without quotes where that is safe. */
  function yamlString(text) {
    const plain = text !== "" && PLAIN_FIRST.includes(text[0]) && [...text].every((one) => PLAIN.includes(one));
    return plain && !WORDS.includes(text.toLowerCase()) ? text : quoted(text);
  }

  const isMapping = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

  function literal(value, words, number, text) {
    const inner = (item) => literal(item, words, number, text);
    if (value === null || typeof value === "boolean") return words[value];
    if (typeof value === "string") return text(value);
    if (Array.isArray(value)) return `[${value.map(inner).join(", ")}]`;
    if (isMapping(value)) return `{${Object.entries(value).map(([name, item]) => `${text(name)}: ${inner(item)}`).join(", ")}}`;
    return number(value);
  }

  /** A value as Python source. */
  const pythonLiteral = (value) => literal(value, PYTHON_WORDS, numberText, quoted);

  /** A value as YAML on one line. */
  const yamlFlow = (value) => literal(value, JSON_WORDS, yamlNumber, yamlString);

  /** A value as JSON on one line. */
  const jsonFlow = (value) => literal(value, JSON_WORDS, numberText, jsonQuoted);

  /** A comment of YAML or Python as lines that begin with `indent` spaces and `# `. */
  function comment(text, indent = 0) {
    const start = `${" ".repeat(indent)}#`;
    const lines = [start];
    const shown = [...text].map((one) => (one >= " " && one <= "~" ? one : letter(one))).join("");
    for (const word of shown.split(" ")) {
      const last = lines.at(-1);
      if (last !== start && last.length + 1 + word.length > WIDTH) lines.push(start);
      lines[lines.length - 1] += ` ${word}`;
    }
    return lines;
  }

  /** A document as YAML; `said` has by dotted name what stands above an entry, "" is the head. */
  function yamlText(document, said = {}) {
    const above = (name, indent) => (Object.hasOwn(said, name) ? comment(said[name], indent) : []);
    const lines = above("", 0);
    for (const [name, value] of Object.entries(document)) {
      lines.push(...above(name, 0));
      if (!isMapping(value)) {
        lines.push(`${name}: ${yamlFlow(value)}`);
        continue;
      }
      lines.push(`${name}:`);
      for (const [key, item] of Object.entries(value)) lines.push(...above(`${name}.${key}`, 2), `  ${key}: ${yamlFlow(item)}`);
    }
    return `${lines.join("\n")}\n`;
  }

  /** A document as JSON. */
  function jsonText(document) {
    const entries = Object.entries(document).map(([name, value]) => {
      if (!isMapping(value)) return `  ${jsonQuoted(name)}: ${jsonFlow(value)}`;
      const inner = Object.entries(value).map(([key, item]) => `    ${jsonQuoted(key)}: ${jsonFlow(item)}`);
      return `  ${jsonQuoted(name)}: {\n${inner.join(",\n")}\n  }`;
    });
    return `{\n${entries.join(",\n")}\n}\n`;
  }

  const parts = { comment, jsonText, numberText, pythonLiteral, yamlFlow, yamlText };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
