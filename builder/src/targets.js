"use strict";
/*
 * Advice as a file: YAML, JSON or a Python script for Wishbone, TRL or Unsloth, from the templates in targets.json, which
 * wishbone.config.targets describes. What a user typed gets into a script only as a literal.
 */
{
  const inNode = typeof require !== "undefined";
  const { comment, jsonText, pythonLiteral, yamlText } = inNode ? require("./emit.js") : globalThis.wishbone;
  const { Scope } = inNode ? require("./rules.js") : globalThis.wishbone;
  const { RequestError } = inNode ? require("./request_error.js") : globalThis.wishbone;
  const { targets } = inNode ? require("../data/targets.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { AS_ASKED } = constants["config.targets"];
  const holds = (object, name) => typeof object === "object" && object !== null && Object.hasOwn(object, name);

  class Advice {
    constructor(target, { facts, settings, applied }) {
      this.scope = new Scope(`target ${target}`, facts, settings);
      this.decided = Object.fromEntries(applied.flatMap((rule) => Object.keys(rule.set).map((name) => [name, rule])));
    }

    reason(setting) {
      const rule = setting !== undefined && this.decided[setting];
      return !rule || rule.reason === AS_ASKED ? "" : rule.reason;
    }

    value(expression) {
      if (holds(expression, "map")) {
        return Object.fromEntries(Object.entries(expression.map).map(([name, field]) => [name, this.value(field)]));
      }
      if (holds(expression, "list")) return expression.list.map((item) => this.value(item));
      return this.scope.value(expression);
    }

    *entries(entries) {
      for (const entry of entries) {
        if (!holds(entry, "section")) {
          yield entry;
          continue;
        }
        for (const [name, value] of Object.entries(this.scope.settings)) {
          if (name.startsWith(`${entry.section}.`) && value !== null) yield { name, value: { setting: name }, reason: name };
        }
      }
    }

    /** Values and comments of a document. */
    document(template) {
      const problems = template.refuse.filter((item) => this.scope.holds(item.when)).map((item) => item.problem);
      if (problems.length) throw new RequestError(problems);
      const document = {};
      const comments = { "": template.head };
      for (const entry of this.entries(template.entries)) {
        if (!this.scope.holds(entry.when ?? true)) continue;
        const point = entry.name.indexOf(".");
        const section = point < 0 ? entry.name : entry.name.slice(0, point);
        if (point < 0) document[section] = this.value(entry.value);
        else (document[section] ??= {})[entry.name.slice(point + 1)] = this.value(entry.value);
        const reason = this.reason(entry.reason);
        if (reason && !Object.values(comments).includes(reason)) comments[entry.name] = reason;
      }
      return { document, comments };
    }

    /** Lines of a block of a script; `said` are the reasons so far, which are not repeated. */
    *lines(block, said) {
      for (const line of block) {
        if (typeof line === "string") yield this.scope.fill(line, pythonLiteral);
        else if (holds(line, "reason")) {
          const reason = this.reason(line.reason);
          if (reason && !said.has(reason)) {
            said.add(reason);
            yield* comment(reason, line.indent);
          }
        } else if (holds(line, "include")) yield* this.lines(targets.blocks[line.include], said);
        else if (this.scope.holds(line.when)) yield* this.lines(line.lines, said);
      }
    }
  }

  /**
   * The file for `target` as `format` (yaml, json, python), as text that ends with a line break; `outcome` is what the
   * rules said. Throws RequestError where the target has no such file for these settings.
   */
  function write(target, format, outcome) {
    const advice = new Advice(target, outcome);
    if (format === "python") {
      const said = new Set();
      const lines = targets.scripts[target].flatMap((block) => [...advice.lines(targets.blocks[block], said)]);
      return `${lines.join("\n")}\n`;
    }
    const { document, comments } = advice.document(targets.documents[target]);
    return format === "yaml" ? yamlText(document, comments) : jsonText(document);
  }

  const parts = { AS_ASKED, write };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
