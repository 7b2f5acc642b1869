"use strict";
/* What the package offers to other programs: answers in, advice, plan and files out. */
module.exports = {
  ...require("./request_error.js"),
  ...require("./situation.js"),
  ...require("./advisor.js"),
  ...require("./planner.js"),
  ...require("./alternatives.js"),
  ...require("./targets.js"),
};
