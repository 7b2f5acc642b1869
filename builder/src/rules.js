"use strict";
/*
 * Applies the rules in rules.json; wishbone.config.rules describes their language.
 *
 * Rules are tried in order. If a rule's condition holds, its expressions are evaluated with the settings before it, and
 * then all of them are set. Whatever is unknown or of the wrong kind throws RulesError: a broken rule gives no advice.
 */
{
  const { numberText } = typeof require === "undefined" ? globalThis.wishbone : require("./emit.js");

  class RulesError extends Error {}

  const has = (object, name) => typeof name === "string" && Object.hasOwn(object, name);
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const isName = (value, key) => isObject(value) && Object.keys(value).length === 1 && has(value, key);

  const ARITHMETIC = {
    "+": [2, 99, (numbers) => numbers.reduce((left, right) => left + right)],
    "*": [2, 99, (numbers) => numbers.reduce((left, right) => left * right)],
    "-": [2, 2, ([left, right]) => left - right],
    "/": [2, 2, ([left, right]) => left / right],
    min: [2, 99, (numbers) => Math.min(...numbers)],
    max: [2, 99, (numbers) => Math.max(...numbers)],
    floor: [1, 1, ([number]) => Math.floor(number)],
  };

  /** A value as a reason shows it. */
  function valueText(value) {
    if (value === null) return "none";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (Array.isArray(value)) return value.map(valueText).join(", ");
    if (typeof value === "string") return value;
    const text = numberText(value);
    return /^[0-9]+$/.test(text) ? text.replace(/\B(?=([0-9]{3})+$)/g, ",") : text;
  }

  /** What a rule can see: facts, and settings as they stand; `rule` is its name in errors. */
  class Scope {
    constructor(rule, facts, settings) {
      Object.assign(this, { rule, facts, settings });
    }

    wrong(part) {
      return new RulesError(`rule ${this.rule}: ${JSON.stringify(part)} cannot be evaluated`);
    }

    /** Whether a condition is true. */
    holds(condition) {
      if (typeof condition === "boolean") return condition;
      if ((isName(condition, "fact") || isName(condition, "setting")) && typeof this.value(condition) === "boolean") return this.value(condition);
      if (!Array.isArray(condition)) throw this.wrong(condition);
      const [operator, ...parts] = condition;
      if (operator === "all") return parts.every((part) => this.holds(part));
      if (operator === "any") return parts.some((part) => this.holds(part));
      if (operator === "not" && parts.length === 1) return !this.holds(parts[0]);
      if (parts.length !== 2) throw this.wrong(condition);
      const [left, right] = parts;
      if (operator === "=") return this.same(this.value(left), this.value(right));
      if (operator === "<") return this.number(left) < this.number(right);
      if (operator === "<=") return this.number(left) <= this.number(right);
      if (operator === "in" && Array.isArray(right)) {
        const value = this.value(left);
        return right.some((other) => this.same(value, other));
      }
      if (operator === "has") {
        const list = this.value(left);
        if (Array.isArray(list)) return list.some((value) => this.same(value, right));
      }
      throw this.wrong(condition);
    }

    /** The value of an expression. */
    value(expression) {
      if (expression === null || ["boolean", "string", "number"].includes(typeof expression)) return expression;
      if (isName(expression, "fact") && has(this.facts, expression.fact)) return this.facts[expression.fact];
      if (isName(expression, "setting") && has(this.settings, expression.setting)) return this.settings[expression.setting];
      if (isName(expression, "list") && Array.isArray(expression.list)) return expression.list.map((item) => this.value(item));
      if (Array.isArray(expression) && expression.length > 1 && has(ARITHMETIC, expression[0])) {
        return this.calculated(expression[0], expression.slice(1).map((part) => this.number(part)));
      }
      throw this.wrong(expression);
    }

    /** Text with the names in braces replaced by their values as `show` writes them. */
    fill(text, show = valueText) {
      const [start, ...rest] = text.split("{");
      return rest.reduce((filled, part) => {
        const end = part.indexOf("}");
        const name = part.slice(0, Math.max(end, 0));
        const values = name.includes(".") ? this.settings : this.facts;
        if (end < 0 || !has(values, name)) throw this.wrong(text);
        return filled + show(values[name]) + part.slice(end + 1);
      }, start);
    }

    calculated(operator, numbers) {
      const [least, most, apply] = ARITHMETIC[operator];
      if (numbers.length < least || numbers.length > most) throw this.wrong([operator, ...numbers]);
      const result = apply(numbers);
      if (!Number.isFinite(result)) throw this.wrong([operator, ...numbers]);
      return result;
    }

    number(expression) {
      const value = this.value(expression);
      if (typeof value !== "number") throw this.wrong(expression);
      return value;
    }

    same(left, right) {
      if (Array.isArray(left) || Array.isArray(right)) throw this.wrong([left, right]);
      return left === right;
    }
  }

  /**
   * Apply the rules of `book` to facts: `{facts, settings, applied: [{id, set, reason, source, kind}]}`, settings in the
   * order in which the book names them.
   */
  function evaluate(book, facts) {
    const odd = [...book.facts.filter((name) => !has(facts, name)), ...Object.keys(facts).filter((name) => !book.facts.includes(name))];
    if (odd.length) throw new RulesError(`facts are not those of the rules: ${odd.sort().join(", ")} missing or unknown`);
    const settings = {};
    const applied = [];
    for (const rule of book.rules) {
      const scope = new Scope(rule.id, facts, settings);
      if (!scope.holds(rule.when)) continue;
      const unknown = Object.keys(rule.set).filter((name) => !book.settings.includes(name));
      if (unknown.length) throw new RulesError(`rule ${rule.id}: unknown settings ${unknown.sort().join(", ")}`);
      const set = Object.fromEntries(Object.entries(rule.set).map(([name, expression]) => [name, scope.value(expression)]));
      Object.assign(settings, set);
      applied.push({ id: rule.id, set, reason: scope.fill(rule.reason), source: rule.source, kind: rule.kind });
    }
    const named = book.settings.filter((name) => has(settings, name));
    return { facts, settings: Object.fromEntries(named.map((name) => [name, settings[name]])), applied };
  }

  const parts = { RulesError, Scope, evaluate, valueText };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
