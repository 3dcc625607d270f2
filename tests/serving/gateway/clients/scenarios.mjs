// What an agent does with the official client, told as one JSON object on standard output.
// Arguments: base URL, a key that holds, a key whose limit is used up, the small model's task.
import OpenAI from "openai";

const [baseURL, apiKey, spentKey, task] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "say something" }];
const tools = [
  { type: "function", function: { name: "weather", parameters: { type: "object" } } },
];
const found = {};

async function joined(stream) {
  const out = { text: {}, calls: [], usage: null, reasons: [] };
  for await (const chunk of stream) {
    if (chunk.usage) out.usage = chunk.usage.total_tokens;
    for (const choice of chunk.choices) {
      out.text[choice.index] = (out.text[choice.index] ?? "") + (choice.delta.content ?? "");
      for (const part of choice.delta.tool_calls ?? []) {
        out.calls[part.index] ??= { name: "", arguments: "" };
        out.calls[part.index].name += part.function.name ?? "";
        out.calls[part.index].arguments += part.function.arguments ?? "";
      }
      if (choice.finish_reason) out.reasons.push(choice.finish_reason);
    }
  }
  out.text = Object.values(out.text).map((text) => text.trim());
  return out;
}

async function failing(ask) {
  try {
    await ask();
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? null, code: error.code ?? null };
  }
}

const create = (more) => client.chat.completions.create({ model: "big", messages, ...more });
const oneMessage = (answer) => answer.choices[0].message;
const callsOf = (answer) =>
  oneMessage(answer).tool_calls.map(({ function: { name, arguments: given } }) => ({
    name,
    arguments: given,
  }));

const raw = await create({}).withResponse();
found.whole = {
  text: oneMessage(raw.data).content,
  tokens: raw.data.usage.total_tokens,
  answeredBy: raw.response.headers.get("x-nightschool-answered-by"),
  requestId: raw.request_id,
};
found.stream = await joined(
  await create({ stream: true, stream_options: { include_usage: true } }),
);
found.tools = callsOf(await create({ tools }));
found.streamedTools = await joined(await create({ tools, stream: true }));
const schema = { name: "place", schema: { type: "object", required: ["city"] } };
found.schema = JSON.parse(
  oneMessage(await create({ response_format: { type: "json_schema", json_schema: schema } })).content,
);
found.choices = (await create({ n: 2 })).choices.map((choice) => choice.message.content);
found.streamedChoices = (await joined(await create({ n: 2, stream: true }))).text;
found.logprobs = (await create({ logprobs: true })).choices[0].logprobs.content[0].logprob;
found.models = (await client.models.list()).data.map((model) => model.id);
found.model = (await client.models.retrieve(`nightschool/${task}`)).id;
found.embedding = (
  await client.embeddings.create({ model: "e", input: "x", encoding_format: "float" })
).data[0].embedding;
found.response = (await client.responses.create({ model: "big", input: "x" })).output_text;
found.streamedResponse = "";
for await (const event of await client.responses.create({ model: "big", input: "x", stream: true })) {
  if (event.type === "response.output_text.delta") found.streamedResponse += event.delta;
}

found.small = {};
for (const stream of [false, true]) {
  const { data, response } = await create({
    messages: [{ role: "user", content: "on" }],
    metadata: { task },
    stream,
  }).withResponse();
  found.small[stream ? "streamed" : "whole"] = {
    text: stream ? (await joined(data)).text[0] : oneMessage(data).content,
    answeredBy: response.headers.get("x-nightschool-answered-by"),
  };
}

const strange = (key) => new OpenAI({ baseURL, apiKey: key, maxRetries: 0 });
const big = "x".repeat(2 << 20);
found.errors = {
  key: await failing(() => strange("wrong").chat.completions.create({ model: "big", messages })),
  role: await failing(() => client.files.list()),
  model: await failing(() => client.models.retrieve("nobody")),
  unknown: await failing(() => create({ model: "unknown" })),
  bad: await failing(() => create({ model: "bad" })),
  shape: await failing(() => create({ messages: [] })),
  large: await failing(() => create({ messages: [{ role: "user", content: big }] })),
  limit: await failing(() => strange(spentKey).models.list()),
  busy: await failing(() => create({ model: "busy" })),
  broken: await failing(() => create({ model: "broken" })),
  slow: await failing(() =>
    client.chat.completions.create({ model: "slow", messages }, { timeout: 300 }),
  ),
};

const endless = await create({ model: "endless", stream: true });
for await (const chunk of endless) {
  if (chunk.choices[0].delta.content?.includes("more")) endless.controller.abort();
}
found.afterAbort = oneMessage(await create({})).content;

console.log(JSON.stringify(found));
