"use strict";
/* The vectors that Python and JavaScript are both held to. */
const { existsSync, readFileSync, readdirSync } = require("node:fs");
const path = require("node:path");

const FOLDER = path.join(__dirname, "..", "..", "tests", "vectors");

/** The content of a file of vectors. */
const vectors = (name) => JSON.parse(readFileSync(path.join(FOLDER, name), "utf8"));

/** Names of the files of vectors that begin with `start`. */
const files = (start) => (existsSync(FOLDER) ? readdirSync(FOLDER).filter((name) => name.startsWith(start)).sort() : []);

module.exports = { files, vectors };
