"use strict";
// The examples: answers to prompts and likelihoods of held-out conversations, joined where they are of the same prompt.

const results = JSON.parse(document.getElementById("data").textContent) ?? {};

// Labels come from outside, and an object answers to names such as "constructor" that nobody gave it.
const get = (object, key) =>
  object !== null && typeof object === "object" && Object.hasOwn(object, key) ? object[key] : undefined;
const listOf = (value) => (Array.isArray(value) ? value.filter((each) => each !== null && typeof each === "object") : []);
const keysOf = (value) => (value !== null && typeof value === "object" ? Object.keys(value) : []);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// The text of a message's content, which may be a list of parts.
function textOf(content) {
  if (typeof content === "string") return content;
  if (content === null || content === undefined) return "";
  if (!Array.isArray(content)) return JSON.stringify(content);
  return content
    .map((part) => get(part, "text") ?? get(part, "thinking") ?? `[${get(part, "type") ?? "part"}]`)
    .join("");
}

// A message as it is shown: its reasoning, its text, its calls.
function messageText(message) {
  const calls = listOf(get(message, "tool_calls")).map((call) => JSON.stringify(call));
  return [get(message, "reasoning_content"), textOf(get(message, "content")), ...calls].filter(Boolean).join("\n");
}

const asked = (messages) => {
  const last = messages.findLastIndex((message) => get(message, "role") === "assistant");
  return last < 0 ? messages : messages.slice(0, last);
};
const keyOf = (messages) => JSON.stringify(messages.map((message) => [get(message, "role"), messageText(message)]));

function findLabels() {
  const labels = new Set([...keysOf(results.models), ...keysOf(results.scores)]);
  for (const result of listOf(results.results)) {
    for (const label of [...keysOf(get(result, "responses")), ...keysOf(get(result, "answers"))]) labels.add(label);
    if (typeof get(result, "base_response") === "string") labels.add(baseLabel());
  }
  for (const example of listOf(get(results.likelihood, "examples"))) {
    for (const label of keysOf(get(example, "nll"))) labels.add(label);
  }
  if (![...labels].some((label) => label !== baseLabel()) && listOf(results.results).length) labels.add("lora");
  return [...labels];
}
function baseLabel() {
  return keysOf(results.models).find((label) => get(get(results.models, label), "base") === true) ?? "base";
}

const labels = findLabels();
const comparisons = listOf(results.comparisons);

function responseOf(result, label) {
  const several = get(result, "responses");
  if (several) return get(several, label);
  return get(result, label === baseLabel() ? "base_response" : "lora_response");
}

function buildItems() {
  const items = [];
  const waiting = new Map();
  for (const result of listOf(results.results)) {
    const prompt = listOf(get(result, "prompt"));
    const item = {
      position: items.length + 1,
      prompt,
      reference: get(result, "reference") ?? null,
      responses: new Map(labels.map((label) => [label, responseOf(result, label)])),
      answers: get(result, "answers") ?? {},
      errors: get(result, "errors") ?? {},
      verdicts: listOf(get(result, "verdicts")),
      nll: {},
    };
    items.push(item);
    const key = keyOf(prompt);
    if (!waiting.has(key)) waiting.set(key, []);
    waiting.get(key).push(item);
  }
  for (const example of listOf(get(results.likelihood, "examples"))) {
    const messages = listOf(get(example, "messages"));
    const prompt = asked(messages);
    let item = waiting.get(keyOf(prompt))?.shift();
    if (!item) {
      item = { position: items.length + 1, prompt, reference: null, responses: new Map(), answers: {}, errors: {}, verdicts: [] };
      items.push(item);
    }
    item.nll = get(example, "nll") ?? {};
    item.trained = get(example, "trained_tokens");
    item.bytes = get(example, "bytes");
    if (item.reference === null && messages.length > prompt.length) {
      item.reference = messages.slice(prompt.length).map(messageText).join("\n");
    }
  }
  return items;
}

const items = buildItems();

const REFERENCE = { label: null, name: "reference" };
const models = [
  ...labels.map((label) => ({ label, name: label })),
  ...(items.some((item) => typeof item.reference === "string") ? [REFERENCE] : []),
];

const answerOf = (item, model) => get(item.answers, model.label) ?? {};
const errorOf = (item, model) => answerOf(item, model).error ?? get(item.errors, model.label);
const textBy = (item, model) => (model === REFERENCE ? item.reference : item.responses.get(model.label)) ?? null;

// The unit in which two models may be compared: bits per byte where their tokenizers differ.
function unitOf(left, right) {
  const pair = [left.label, right.label];
  const found = comparisons.find((each) => pair.includes(get(each, "of")) && pair.includes(get(each, "against")));
  return get(found ?? comparisons[0], "unit") === "bits_per_byte" ? "bits per byte" : "NLL";
}

function likelihoodOf(item, model, unit) {
  const nll = get(item.nll, model.label);
  const size = unit === "NLL" ? item.trained : item.bytes * Math.LN2;
  return isNumber(nll) && size > 0 ? nll / size : null;
}

const FLIPPED = { win: "loss", tie: "tie", loss: "win" };
function verdictOf(item, left, right) {
  for (const each of item.verdicts) {
    const verdict = get(each, "verdict");
    if (each.of === right.label && each.against === left.label) return verdict;
    if (each.of === left.label && each.against === right.label) return FLIPPED[verdict];
  }
  return undefined;
}

function haystack(item) {
  item.haystack ??= [...item.prompt.map(messageText), item.reference, ...item.responses.values()]
    .filter((text) => typeof text === "string")
    .join("\n")
    .toLowerCase();
  return item.haystack;
}
