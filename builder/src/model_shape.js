"use strict";
/*
 * The shape of a language model, from its config.json alone, as in wishbone.planning.model_shape. A field that is missing
 * has transformers' default: as many key heads as heads, heads of hidden_size / heads elements.
 */
{
  const inNode = typeof require !== "undefined";
  const { RequestError } = inNode ? require("./request_error.js") : globalThis.wishbone;
  const { showPath } = inNode ? require("./words.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const {
    EXPERTS, FOUR_NORMS, FUSED, HEAD_NORMS, INSTEAD, ModelShape: DEFAULTS, OTHER_NAMES, QUERY_KEY_VALUE_BIAS, TIED,
  } = constants["planning.model_shape"];

  const sum = (numbers) => numbers.reduce((left, right) => left + right, 0);
  const linear = (name, inputs, outputs) => ({ name, inputs, outputs });

  /** Sizes of a decoder; fields as in Python, in camel case. */
  class ModelShape {
    constructor(sizes) {
      Object.assign(this, DEFAULTS, sizes);
    }

    /** Size of all query heads together. */
    get query() {
      return this.heads * this.headSize;
    }

    /** Size of all key heads together. */
    get key() {
      return this.keyHeads * this.headSize;
    }

    /** Linear layers of one transformer layer. */
    get linears() {
      const { hidden, inner, query, key } = this;
      const fused = FUSED.includes(this.modelType);
      const attention = fused
        ? [linear("qkv_proj", hidden, query + 2 * key)]
        : [linear("q_proj", hidden, query), linear("k_proj", hidden, key), linear("v_proj", hidden, key)];
      const mlp = fused
        ? [linear("gate_up_proj", hidden, 2 * inner)]
        : [linear("gate_proj", hidden, inner), linear("up_proj", hidden, inner)];
      attention.push(linear("o_proj", query, hidden));
      mlp.push(linear("down_proj", inner, hidden));
      return [...attention, ...(inner ? mlp : [])];
    }

    /** Weights of the linear layers of all layers. */
    get linearParameters() {
      return this.layers * sum(this.linears.map((one) => one.inputs * one.outputs));
    }

    /** Weights of all experts and of their routers. */
    get expertParameters() {
      return this.layers * this.experts * (3 * this.hidden * this.expertInner + this.hidden);
    }

    /** Weights of norms and biases. */
    get vectorParameters() {
      let heads = 0;
      if (this.headNorms) heads = this.modelType.startsWith("olmo") ? this.query + this.key : 2 * this.headSize;
      return this.layers * (this.norms * this.hidden + heads + this.biases) + this.hidden;
    }

    /** Weights of the embedding and, where it has weights of its own, of the head. */
    get embeddingParameters() {
      return (this.tied ? 1 : 2) * this.vocabulary * this.hidden;
    }

    /** All weights. */
    get parameters() {
      return this.linearParameters + this.expertParameters + this.vectorParameters + this.embeddingParameters;
    }
  }

  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const given = (value) => value !== undefined && value !== null;
  const truth = (value) => (Array.isArray(value) ? value.length > 0 : isObject(value) ? Object.keys(value).length > 0 : Boolean(value));

  /** The part of a config.json that describes the language model. */
  function languageModel(config) {
    return isObject(config.text_config) ? { tie_word_embeddings: config.tie_word_embeddings, ...config.text_config } : config;
  }

  /**
   * The shape that a config.json describes, given as the object it holds; of a model with images that of its language
   * model. Throws RequestError with all fields that are missing or no sizes.
   */
  function readShape(config, name = "config.json") {
    const fields = languageModel(config);
    const missing = [];
    const wrong = [];

    function size(own, usual = null) {
      const found = [own, ...(OTHER_NAMES[own] ?? [])].find((one) => given(fields[one]));
      if (found === undefined) {
        if (usual === null) missing.push(own);
        return usual ?? 0;
      }
      const value = fields[found];
      if (!Number.isSafeInteger(value) || value < 0 || (value === 0 && usual === null)) {
        wrong.push(`${found} is ${JSON.stringify(value)}`);
        return 0;
      }
      return value;
    }

    const modelType = truth(fields.model_type) ? String(fields.model_type) : "unknown";
    let experts = 0;
    for (const own of EXPERTS) experts ||= size(own, 0);
    const hidden = size("hidden_size");
    const layers = size("num_hidden_layers");
    const heads = size("num_attention_heads");
    const vocabulary = size("vocab_size");
    const inner = size("intermediate_size", experts ? 0 : null);
    const expertsUsed = experts ? size("num_experts_per_tok") : 0;
    const keyHeads = size("num_key_value_heads", heads) || heads;
    const headSize = size("head_dim", 0) || (heads ? Math.floor(hidden / heads) : 0);
    if (missing.length || wrong.length) {
      const problems = [];
      if (missing.length) problems.push(`${showPath(name)}: its config.json lacks ${missing.join(", ")}; ${INSTEAD}`);
      if (wrong.length) problems.push(`${showPath(name)}: ${wrong.join(", ")}, and a size is a whole number; ${INSTEAD}`);
      throw new RequestError(problems);
    }
    const query = heads * headSize;
    const key = keyHeads * headSize;
    const everywhere = truth(fields.attention_bias);
    const biases = (QUERY_KEY_VALUE_BIAS.includes(modelType) || everywhere ? query + 2 * key : 0) + (everywhere ? hidden : 0);
    const tied = given(fields.tie_word_embeddings) ? truth(fields.tie_word_embeddings) : TIED.includes(modelType);
    return new ModelShape({
      modelType, hidden, inner: experts ? 0 : inner, layers, heads, keyHeads, headSize, vocabulary, tied,
      norms: FOUR_NORMS.includes(modelType) ? 4 : 2, headNorms: HEAD_NORMS.includes(modelType) || truth(fields.use_qk_norm),
      biases, experts, expertsUsed, expertInner: experts ? size("moe_intermediate_size", inner) : 0,
      positions: size("max_position_embeddings", 0),
    });
  }

  /** The fields of a config.json that its shape is read from, and no others. */
  function shapeFields(config) {
    const fields = languageModel(config);
    const read = new Set();
    const watched = new Proxy(fields, {
      get(target, name) {
        read.add(name);
        return target[name];
      },
    });
    readShape(watched);
    return Object.fromEntries([...read].filter((name) => given(fields[name])).map((name) => [name, fields[name]]));
  }

  const parts = { readShape, shapeFields };
  if (typeof module === "undefined") globalThis.wishbone = { ...globalThis.wishbone, ...parts };
  else module.exports = parts;
}
