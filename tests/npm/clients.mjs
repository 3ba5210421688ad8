// Calls a client of npm as a program would: node clients.mjs MODULES URL FILE. Prints what each case returns, as JSON.
// The cases have the names that tests/fixtures/client_bodies.json gives them.
import { createReadStream, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, url, path] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { default: OpenAI } = await load("openai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { experimental_transcribe: transcribe } = await load("ai");

const baseURL = `${url}/v1`;
const node = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const file = () => createReadStream(path);
const create = (options) => node.audio.transcriptions.create({ file: file(), ...options });
const events = async (options) => {
  const types = [];
  for await (const event of await create({ ...options, stream: true })) types.push(event.type);
  return types;
};
const sdk = async (model, openai) => {
  const { text, segments, language, durationInSeconds } = await transcribe({
    model: createOpenAI({ baseURL, apiKey: "none" }).transcription(model),
    audio: readFileSync(path),
    maxRetries: 0,
    ...(openai ? { providerOptions: { openai } } : {}),
  });
  return { text, segments, language, durationInSeconds };
};
const cases = {
  "openai-node": {
    plain: () => create({ model: "whisper-1" }),
    options: () =>
      create({
        model: "whisper-1",
        language: "en",
        prompt: "",
        temperature: 0,
        response_format: "verbose_json",
        timestamp_granularities: ["word", "segment"],
      }),
    stream: () => events({ model: "gpt-transcribe", languages: ["en"] }),
    chunking: () =>
      create({ model: "gpt-4o-transcribe", chunking_strategy: { type: "server_vad" }, include: ["logprobs"] }),
    subtitles: () => create({ model: "whisper-1", response_format: "srt" }),
    translation: () => node.audio.translations.create({ file: file(), model: "canary" }),
  },
  "ai-sdk": {
    plain: () => sdk("whisper-1"),
    json: () => sdk("gpt-transcribe", { languages: ["en"], temperature: 0 }),
    verbose: () => sdk("whisper-1", { language: "en", timestampGranularities: ["word"] }),
  },
};

const outcomes = {};
for (const [client, calls] of Object.entries(cases)) {
  outcomes[client] = {};
  for (const [name, call] of Object.entries(calls)) {
    outcomes[client][name] = await call().then(
      (answer) => ({ answer }),
      (error) => ({ error: `${error.name}: ${error.message}` }),
    );
  }
}
console.log(JSON.stringify(outcomes));
