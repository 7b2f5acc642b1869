"use strict";
/*
 * The builder as a command: the flags of `wishbone init`. The file goes to standard output or to --output, what is said
 * about it to standard error. Exit status 0: done, 2: the request was wrong.
 */
const { readFileSync, statSync, writeFileSync } = require("node:fs");
const path = require("node:path");
const { plainValue } = require("./plain_value.js");
const { advise, noting } = require("./advisor.js");
const { assumedGpu, findGpu } = require("./known.js");
const { readShape } = require("./model_shape.js");
const { RequestError } = require("./request_error.js");
const { FIELDS, NO_GPU, flag, readSituation } = require("./situation.js");
const { AS_ASKED, write } = require("./targets.js");
const { yamlFlow } = require("./emit.js");
const { nearest } = require("./nearest.js");
const { show, showPath } = require("./words.js");
const { constants } = require("../data/constants.js");

const FORMATS = constants["config.targets"].Format;
const { OF_SCRIPTS, STANDARD_OUTPUT, SUFFIXES, WITHOUT_GPU } = constants["cli.init"];
const BY_FLAG = new Map(Object.keys(FIELDS).map((name) => [flag(name), name]));

const kinds = (name) => (FIELDS[name].anyOf ?? [FIELDS[name]]).map((schema) => schema.type);
const isNumber = (name) => kinds(name).some((kind) => kind === "integer" || kind === "number");

function help() {
  const lines = [...BY_FLAG].map(([name, field]) => {
    const value = FIELDS[field].type === "boolean" ? "" : field === "symptoms" ? " TEXT" : isNumber(field) ? " NUMBER" : " TEXT";
    const more = field === "symptoms" ? ` May be repeated: ${FIELDS[field].items.enum.join(", ")}.` : "";
    return `  ${`${name}${value}`.padEnd(28)} ${FIELDS[field].description}${more}`;
  });
  return ["Usage: node unsloth-dpo_tool.js --model MODEL --data DATA [FLAGS]", "",
    "Advise settings for a model, a machine and data, with reasons, and write them as YAML, JSON or Python.", "",
    ...lines, `  ${"--format TEXT".padEnd(28)} ${FORMATS.join(", ")}; yaml if not given.`, `  ${"-h, --help".padEnd(28)} Show this.`, ""].join("\n");
}

/** Texts by field name from the words of a command line; `format` and `help` beside the fields. */
function readFlags(words) {
  const given = {};
  for (let index = 0; index < words.length; index += 1) {
    const [word, inline] = /^(--[^=]*)=([^]*)$/.exec(words[index])?.slice(1) ?? [words[index]];
    if (word === "-h" || word === "--help") return { help: true };
    const field = word === "--format" ? "format" : BY_FLAG.get(word);
    if (word === "--no-noisy-labels" || (field && FIELDS[field]?.type === "boolean")) {
      if (inline !== undefined) throw new RequestError(`${word} takes no value`);
      given.noisy_labels = word === "--noisy-labels";
      continue;
    }
    if (field === undefined) {
      if (!word.startsWith("-")) throw new RequestError(`${show(word)}: there is no such argument; everything has a flag`);
      const close = nearest(word, [...BY_FLAG.keys(), "--format"]);
      throw new RequestError(`${show(word)}: there is no such flag${close ? `; did you mean ${close}?` : ""}`);
    }
    if (inline === undefined && index + 1 === words.length) throw new RequestError(`${word} needs a value`);
    const text = inline ?? words[(index += 1)];
    if (field === "symptoms") given.symptoms = [...(given.symptoms ?? []), text];
    else given[field] = text;
  }
  return given;
}

function toAnswers(given) {
  const isAnswer = ([name, value]) => value !== false && !(name === "output" && value === STANDARD_OUTPUT);
  const entries = Object.entries(given).filter(isAnswer);
  const answers = Object.fromEntries(entries.map(([name, text]) => [name, isNumber(name) ? plainValue(text) : text]));
  return WITHOUT_GPU.includes(answers.gpu?.toLowerCase()) ? { ...answers, gpu: NO_GPU } : answers;
}

/** The situation and the format, or all problems of both. */
function checked({ format: asked, ...given }) {
  const format = asked || "yaml";
  const answers = toAnswers(given);
  const problems = [];
  if (!FORMATS.includes(format)) {
    const meant = (Object.hasOwn(SUFFIXES, format) ? SUFFIXES[format] : null) ?? nearest(format, FORMATS);
    problems.push(`--format: ${show(format)} is not accepted. ${meant ? `Did you mean ${meant}? ` : ""}It takes one of ${FORMATS.join(", ")}`);
  }
  const { gpu = NO_GPU } = answers;
  if (gpu.toLowerCase() !== NO_GPU) noting(problems, "--gpu", () => findGpu(gpu));
  let situation = null;
  try {
    situation = readSituation(answers);
  } catch (refused) {
    if (!(refused instanceof RequestError)) throw refused;
    problems.unshift(...refused.problems);
  }
  if (problems.length) throw new RequestError(problems);
  return { situation, format };
}

/** The shape in a model's directory, or null where it is no directory with a config.json. */
function shapeOfDirectory(model) {
  const file = path.join(model, "config.json");
  try {
    if (!statSync(file, { throwIfNoEntry: false })?.isFile()) return null;
  } catch (error) {
    if (!error.code) throw error;
    return null; // a name that no file may have
  }
  try {
    const config = JSON.parse(readFileSync(file, "utf8"));
    if (typeof config === "object" && config !== null && !Array.isArray(config)) return readShape(config, file);
  } catch (error) {
    if (!(error instanceof SyntaxError) && !error.code) throw error;
    throw new RequestError(`${showPath(file)} cannot be read (${error.message}); a model's config.json is needed`);
  }
  throw new RequestError(`${showPath(file)} holds no mapping; a model's config.json is needed`);
}

function told({ settings, applied }, scripted) {
  const decided = new Map(applied.flatMap((rule) => Object.keys(rule.set).map((name) => [name, rule])));
  const isShown = (name) => (name.startsWith("script.") ? scripted && name in OF_SCRIPTS : true);
  const lines = [];
  for (const rule of applied) {
    const names = Object.keys(rule.set).filter((name) => decided.get(name) === rule && isShown(name));
    if (names.length) lines.push(names.map((name) => `${OF_SCRIPTS[name] ?? name}: ${yamlFlow(settings[name])}`).join("   "));
    if (names.length && rule.reason !== AS_ASKED) lines.push(`    ${rule.reason}`);
  }
  const notes = applied.filter((rule) => rule.kind === "warning").map((rule) => `note: ${rule.reason}`);
  return [...lines, ...notes].map(printable).join("\n");
}

/** Text as a terminal may show it: control characters replaced. */
const printable = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\ufffd");

function refuse(problems, streams) {
  const numbered = problems.map((text, index) => `  ${index + 1}. ${printable(text)}\n`).join("");
  streams.error(problems.length === 1 ? `wishbone: ${printable(problems[0])}\n` : `wishbone: ${problems.length} problems\n${numbered}`);
}

function writeNew(path, text) {
  try {
    writeFileSync(path, text, { encoding: "utf8", flag: "wx" });
  } catch (error) {
    if (error.code === "EEXIST") throw new RequestError(`--output: ${showPath(path)} exists; name another file, or delete it if it is not needed`);
    if (!error.code) throw error;
    throw new RequestError(`--output: ${showPath(path)} cannot be written (${error.code}); check the folder and its permissions`);
  }
}

/** Run the command with the words after its name; `streams` has `out` and `error`. Returns the exit status. */
function run(words, streams) {
  try {
    const given = readFlags(words);
    if (given.help) {
      streams.out(help());
      return 0;
    }
    const { situation, format } = checked(given);
    const assumed = situation.gpu.toLowerCase() === NO_GPU ? null : assumedGpu(situation.gpu);
    if (assumed) streams.error(`note: ${printable(assumed)}\n`);
    const outcome = advise(situation, shapeOfDirectory);
    const text = write(situation.target, format, outcome);
    streams.error(`${told(outcome, format === "python" || situation.target !== "wishbone")}\n`);
    if (situation.output === null) streams.out(text);
    else {
      writeNew(situation.output, text);
      streams.error(`written: ${printable(situation.output)}\n`);
    }
    return 0;
  } catch (refused) {
    if (!(refused instanceof RequestError)) throw refused;
    refuse(refused.problems, streams);
    return 2;
  }
}

module.exports = { run };
