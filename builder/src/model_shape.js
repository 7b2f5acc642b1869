"use strict";
/*
 * The shape of a language model, from its config.json alone, as in wishbone.planning.model_shape. A field that is missing
 * has transformers' default: as many key heads as heads, heads of hidden_size / heads elements.
 */
{
  const inNode = typeof require !== "undefined";
  const { RequestError } = inNode ? require("./request_error.js") : globalThis.wishbone;
  const { everyOf, linear, mixerOf, recurrentLayers, scanOf, singleKinds } = inNode ? require("./mixers.js") : globalThis.wishbone;
  const { showPath } = inNode ? require("./words.js") : globalThis.wishbone;
  const { constants } = inNode ? require("../data/constants.js") : globalThis.wishbone;

  const {
    EXPERTS, FOUR_NORMS, FUSED, GATED_QUERIES, HEAD_NORMS, INSTEAD, ModelShape: DEFAULTS, ONE_PART, ONLY_MAMBA,
    OTHER_NAMES, QUERY_KEY_VALUE_BIAS, TIED,
  } = constants["planning.model_shape"];
  const { KEPT_OF_MIXER, RECURRENT_TYPES } = constants["planning.mixers"];

  const sum = (numbers) => numbers.reduce((left, right) => left + right, 0);

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

    /** How many layers attend. */
    get attending() {
      return this.layers - this.recurrent - this.mlpAlone;
    }

    /** Elements a token that a recurrent layer keeps between its two norms. */
    get mixed() {
      return KEPT_OF_MIXER * sum(this.mixer.slice(0, -1).map((one) => one.outputs)) + this.mixer.at(-1).inputs;
    }

    /** Linear layers of the model, with how many it has of each. */
    get linears() {
      const { hidden, key, attending } = this;
      const query = this.gatedQueries ? 2 * this.query : this.query;
      const attention = FUSED.includes(this.modelType)
        ? [linear("qkv_proj", hidden, query + 2 * key, attending)]
        : [
          linear("q_proj", hidden, query, attending), linear("k_proj", hidden, key, attending),
          linear("v_proj", hidden, key, attending),
        ];
      attention.push(linear("o_proj", this.query, hidden, attending));
      const mixers = this.mixer.map((one) => linear(one.name, one.inputs, one.outputs, this.recurrent));
      const mlps = [
        ...this.mlp(this.inner, this.mlpAlone || this.layers),
        ...this.mlp(this.denseInner, (this.mlpAlone || this.layers) - this.expertLayers),
        ...this.mlp(this.sharedInner, this.expertLayers),
      ];
      return [...attention, ...mixers, ...mlps].filter((one) => one.count);
    }

    /** The linear layers of so many MLPs; none without a size. */
    mlp(inner, count) {
      const { hidden } = this;
      if (!inner) return [];
      const down = linear("down_proj", inner, hidden, count);
      if (FUSED.includes(this.modelType)) return [linear("gate_up_proj", hidden, 2 * inner, count), down];
      const into = this.gated ? ["gate_proj", "up_proj"] : ["up_proj"];
      return [...into.map((name) => linear(name, hidden, inner, count)), down];
    }

    /** Matrices of an MLP or of an expert. */
    get matrices() {
      return this.gated ? 3 : 2;
    }

    /** Weights of all linear layers. */
    get linearParameters() {
      return sum(this.linears.map((one) => one.count * one.inputs * one.outputs));
    }

    /** Weights of all experts and of their routers. */
    get expertParameters() {
      return this.expertLayers * this.experts * (this.matrices * this.hidden * this.expertInner + this.hidden);
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
    const single = ONE_PART.includes(modelType) ? singleKinds(fields) : [];
    const count = (...kinds) => single.filter((kind) => kinds.includes(kind)).length;
    let experts = 0;
    for (const own of EXPERTS) experts ||= size(own, 0);
    if (single.length && !count("moe")) experts = 0;
    const hidden = size("hidden_size");
    const layers = single.length || size("num_hidden_layers");
    const alone = ONLY_MAMBA.includes(modelType);
    const heads = size("num_attention_heads", alone ? 0 : null);
    const vocabulary = size("vocab_size");
    let inner = size("intermediate_size", experts || alone ? 0 : null);
    const adjusts = fields.block_auto_adjust_ff_dim === undefined || truth(fields.block_auto_adjust_ff_dim);
    if (modelType === "lfm2" && adjusts) inner = Math.ceil(Math.floor((2 * inner) / 3) / 256) * 256;
    let shared = size("shared_intermediate_size", 0);
    if (shared && !experts) inner = shared;
    const expertsUsed = experts ? size("num_experts_per_tok") : 0;
    const keyHeads = size("num_key_value_heads", heads) || heads;
    const headSize = size("head_dim", 0) || (heads ? Math.floor(hidden / heads) : 0);
    let recurrent = alone ? layers : recurrentLayers(fields, size, layers);
    if (single.length) recurrent = count(...RECURRENT_TYPES);
    const mixer = recurrent ? mixerOf(size, hidden, alone ? inner : 0) : [];
    const expertInner = experts ? size("moe_intermediate_size", inner) : 0;
    shared ||= size("shared_expert_intermediate_size", 0) || size("n_shared_experts", 0) * expertInner;
    const denseInner = size("intermediate_size_mlp", 0); // Llama 4, whose experts and shared expert are of one size
    if (denseInner) shared = inner;
    const dense = Math.min(size("first_k_dense_replace", 0) || size("num_dense_layers", 0), layers);
    const step = experts && !single.length ? size("interleave_moe_layer_step", 0) : 0;
    const period = size("expert_layer_period", 0);
    let expertLayers = everyOf(layers, period, size("expert_layer_offset", 0)) || layers - dense;
    if (single.length) expertLayers = count("moe");
    else if (step) expertLayers = everyOf(layers, step, step - 1);
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
      modelType, hidden, inner: experts || alone ? 0 : inner, layers, heads, keyHeads, headSize, vocabulary, tied,
      norms: alone || single.length ? 1 : FOUR_NORMS.includes(modelType) ? 4 : 2, headNorms: HEAD_NORMS.includes(modelType) || truth(fields.use_qk_norm),
      biases, experts, expertsUsed, expertInner, positions: size("max_position_embeddings", 0),
      expertLayers: experts ? expertLayers : 0, denseInner: experts ? denseInner || inner : 0, sharedInner: experts ? shared : 0, recurrent,
      mixer, scan: recurrent ? scanOf(size) : { held: 0, states: 0, host: 0 }, gatedQueries: GATED_QUERIES.includes(modelType), mlpAlone: count("mlp", "moe"), gated: !ONE_PART.includes(modelType),
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
