"use strict";
/*
 * Models and GPUs by name, as in wishbone.planning.gpus and known_models. Names of GPUs are compared without case,
 * punctuation and the words that drivers put around them.
 */
{
  const inNode = typeof require !== "undefined";
  const { RequestError } = inNode ? require("./request_error.js") : globalThis.wishbone;
  const { closeMatches } = inNode ? require("./nearest.js") : globalThis.wishbone;
  const { show } = inNode ? require("./words.js") : globalThis.wishbone;
  const { readShape } = inNode ? require("./model_shape.js") : globalThis.wishbone;
  const { gpus } = inNode ? require("../data/gpus.js") : globalThis.wishbone;
  const { models } = inNode ? require("../data/models.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const { EMBEDDED_MODEL } = constants["config.schema"];
  const { BF16_FROM, COUNTED, FORM, MEMORY, NEAR, NOT_SUPPORTED, SAID_AROUND, SERIES, SIGNED, SIZE, SOLD, SPELLED } = constants["planning.gpus"];
  const { FORMS } = constants["planning.known_models"];

  const whole = (pattern) => new RegExp(`^(?:${pattern})$`);
  const [isForm, isSize, isSeries, isMemory, isCounted] = [FORM, SIZE, SERIES, MEMORY, COUNTED].map(whole);
  const gpuNames = Object.keys(gpus);
  const modelNames = Object.keys(models);

  /** The words that identify a GPU. */
  function words(name) {
    const sized = name.toLowerCase().replace(new RegExp(SPELLED, "g"), "$1gb");
    const text = sized.replaceAll("rtx", "rtx ").replaceAll("hbm3", "sxm").replace(/(\p{Nd})(ti|super)/gu, "$1 $2");
    const all = (text.match(/[a-z0-9]+/g) ?? []).map((word) => word.replace(/^sxm\p{Nd}/u, "sxm"));
    return new Set(all.filter((word) => !SAID_AROUND.includes(word)));
  }

  const within = (one, other) => [...one].every((word) => other.has(word));
  const same = (one, other) => one.size === other.size && within(one, other);
  /** Whether `more` has every word of `fewer`, and otherwise only words for a form factor. */
  const moreThan = (more, fewer) => more.size > fewer.size && within(fewer, more) && [...more].every((word) => fewer.has(word) || isForm.test(word));

  /** Whether two names differ only in words for a form, and not in two sizes. */
  function isAlike(one, asked) {
    const [own, other] = [one, asked].map((all) => new Set([...all].filter((word) => !isForm.test(word))));
    const [mine, theirs] = [one, asked].map((all) => new Set([...all].filter((word) => isSize.test(word))));
    return own.size > 0 && same(own, other) && (!mine.size || !theirs.size || same(mine, theirs));
  }

  /** Whether a card's number begins with that of the series that was asked for. */
  function isInSeries(one, asked) {
    const beginnings = [...asked].filter((word) => isSeries.test(word));
    if (beginnings.length !== 1 || [...asked].some((word) => word !== beginnings[0] && word !== "laptop")) return false;
    const numbered = [...one].some((word) => whole(`${beginnings[0]}[0-9]{2}`).test(word));
    return numbered && one.has("laptop") === asked.has("laptop");
  }

  /** The words of a name, in lower case. */
  const writtenAs = (name) => (name.toLowerCase().match(/[a-z0-9]+/g) ?? []).join(" ");
  /** GB that a GPU is sold with. */
  const sold = (gpu) => SOLD.find((size) => size >= gpu.memory_gib);
  /** GiB of a GPU, rounded. */
  const rounded = (gpu) => Math.floor(gpu.memory_gib + 0.5);

  /** Names of the GPUs that are meant by their memory alone, none where the name says more; throws RequestError. */
  function gpusOfMemory(name) {
    if (new RegExp(SIGNED).test(name.toLowerCase())) {
      throw new RequestError(`${show(name)} is no GPU and no memory of one; write a name, such as RTX 4090, or a memory, such as 24GB`);
    }
    const asked = isMemory.exec(writtenAs(name));
    if (asked === null) return [];
    const found = gpuNames.filter((one) => [sold(gpus[one]), rounded(gpus[one])].includes(Number(asked[1])));
    if (!found.length) {
      throw new RequestError(`${show(name)} is the memory of no known GPU; known are ${SOLD.join(", ")} GB. Name the GPU, or the next smaller memory`);
    }
    const modern = found.filter((one) => gpus[one].capability >= BF16_FROM);
    return modern.length ? modern : found;
  }

  /** How many GPUs the words of a name count, and the words for one; of words that count none: null, and all. */
  function counted(written) {
    const found = isCounted.exec(written);
    return found === null ? [null, written] : [Number(found[1] ?? found[4]), found[2] ?? found[3]];
  }

  function isKnown(name) {
    try {
      return meantGpus(name).length > 0;
    } catch (error) {
      if (error instanceof RequestError) return false;
      throw error;
    }
  }

  /** Names of the GPUs that a name may mean, one at least; throws RequestError with the nearest names. */
  function meantGpus(name) {
    const written = writtenAs(name);
    const [count, single] = counted(written);
    if (count === 1) return meantGpus(single);
    const known_as = NOT_SUPPORTED.find(([pattern]) => whole(pattern).test(single));
    if (known_as) {
      throw new RequestError(`${show(name)} is ${known_as[1]}, which is known and not supported yet: Wishbone trains on NVIDIA GPUs and on processors. Name one of those GPUs, or none`);
    }
    const asked = words(name);
    const known = gpuNames.map((one) => [words(one), one]);
    const choose = (test) => known.filter(([one]) => test(one)).map(([, one]) => one);
    const found = [
      choose((one) => same(one, asked)),
      asked.size ? choose((one) => moreThan(one, asked)) : [],
      choose((one) => moreThan(asked, one)),
      choose((one) => isAlike(one, asked)),
      written.includes("rtx") ? choose((one) => isInSeries(one, asked)) : [],
    ].find((some) => some.length);
    if (found) return found;
    if (single !== written && isKnown(single)) {
      throw new RequestError(`${show(name)} is ${count} GPUs; name one of them, ${show(single)}, and say how many there are with --gpus ${count}`);
    }
    const byLower = new Map(gpuNames.map((one) => [one.toLowerCase(), one]));
    const isSold = /^[0-9]+$/.test(written) && SOLD.includes(Number(written));
    const near = isSold ? [`${written}GB`] : closeMatches(name.toLowerCase(), [...byLower.keys()], 3, NEAR).map((one) => byLower.get(one));
    const hint = near.length ? `did you mean ${near.join(" or ")}?` : `known are ${gpuNames.join(", ")}.`;
    throw new RequestError(`${show(name)} is not the name of one known GPU; ${hint} Of another GPU write the memory, such as 24GB`);
  }

  /** The first of GPUs by what `order` returns for each, numbers that count in turn. */
  function least(names, order) {
    const before = (one, other) => {
      const at = one.order.findIndex((value, index) => value !== other.order[index]);
      return at >= 0 && one.order[at] < other.order[at];
    };
    const all = names.map((name) => ({ name, ...gpus[name] })).map((gpu) => ({ gpu, order: order(gpu) }));
    return all.reduce((first, one) => (before(one, first) ? one : first)).gpu;
  }

  /** The GPU that a name means, as a user or a driver writes it; of several, the smallest. */
  function findGpu(name) {
    const sized = gpusOfMemory(name);
    if (sized.length) return least(sized, (gpu) => [rounded(gpu), gpu.capability, gpu.memory_gib, gpu.bandwidth_gbs]);
    return least(meantGpus(name), (gpu) => [gpu.memory_gib, gpu.bandwidth_gbs]);
  }

  /** A sentence that says which GPU a name was taken for, or null where only one is meant. */
  function assumedGpu(name) {
    const sized = gpusOfMemory(name);
    const taken = findGpu(name).name;
    const others = (sized.length ? sized : meantGpus(name)).filter((one) => one !== taken);
    if (sized.length) {
      const more = others.length ? `, the smallest and oldest of ${sized.length} (${others.join(", ")})` : "";
      return `${show(name)} is taken for ${taken}${more}; settings and times are its own, so name yours if you can`;
    }
    const also = others.length > 1 ? `${others.slice(0, -1).join(", ")} or ${others.at(-1)}` : others[0];
    return others.length ? `${show(name)} is taken for ${taken}, the smallest that it may be; it may also be ${also}` : null;
  }

  /** The last part of a model's name, in lower case, without the words that leave its shape unchanged. */
  function modelWords(name) {
    const own = name === EMBEDDED_MODEL ? "SmolLM2-135M" : name.replace(/\/+$/, "").split("/").at(-1);
    return own.toLowerCase().split("-").filter((word) => !FORMS.includes(word)).join("-");
  }

  const byWords = new Map(modelNames.map((name) => [modelWords(name), name]));

  /** The name on the hub of the known model that `name` means, or null. */
  const knownName = (name) => (Object.hasOwn(models, name) ? name : byWords.get(modelWords(name)) ?? null);

  /** The shape of the known model that `name` means, or null. */
  function knownShape(name) {
    const known = knownName(name);
    return known === null ? null : readShape(models[known], known);
  }

  const parts = { assumedGpu, findGpu, gpuNames, knownShape, modelNames };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
