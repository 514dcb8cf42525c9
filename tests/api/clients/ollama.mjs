// What the npm package `ollama` gets from the server argv[2] and its model "scripted", as JSON.
import { Ollama } from "ollama";

const ollama = new Ollama({ host: process.argv[2] });
const model = "scripted";

async function toolsRoundTrip() {
  const getWeather = ({ city, days }) => `${city}, ${days} days of sun. <hello>`;
  const parameters = {
    type: "object",
    required: ["city"],
    properties: { city: { type: "string", description: "name of the city" }, days: { type: "integer" } },
  };
  const tools = [{ type: "function", function: { name: "get_weather", description: "Weather of a city", parameters } }];
  const messages = [{ role: "user", content: "<tool>" }];
  const asked = await ollama.chat({ model, messages, tools });
  const call = asked.message.tool_calls[0].function;
  messages.push(asked.message, { role: "tool", tool_name: call.name, content: getWeather(call.arguments) });
  const told = await ollama.chat({ model, messages, tools });
  return { call, result: messages.at(-1).content, answer: told.message.content, calls: told.message.tool_calls };
}

async function streamedThinking() {
  const messages = [{ role: "user", content: "<muse>" }];
  const said = [];
  for await (const { message, done_reason } of await ollama.chat({ model, messages, think: true, stream: true })) {
    said.push({ thinking: message.thinking, content: message.content, done_reason });
  }
  return said;
}

async function stopped() {
  let n = 0;
  try {
    for await (const _ of await ollama.generate({ model, prompt: "<loop>", stream: true })) {
      if (++n === 3) ollama.abort();
    }
  } catch (error) {
    return error.name;
  }
}

async function refused() {
  try {
    await ollama.chat({ model: "nope", messages: [{ role: "user", content: "a" }] });
  } catch (error) {
    return { status: error.status_code, message: error.message };
  }
}

const results = { tools: await toolsRoundTrip(), thinking: await streamedThinking(), refused: await refused() };
console.log(JSON.stringify({ ...results, stopped: await stopped() }));
