#!/usr/bin/env node
// The configuration builder from the shell: node scripts/unsloth-dpo_tool.js --help
"use strict";
require("../builder/src/main.js");
