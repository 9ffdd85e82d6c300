// A bot of whatsapp-api-js that plays its part of the sandbox's tour (broker/sandbox/tour.py), as its own process and
// server. The library is as published: what tells the bot from one that talks to Meta is its base URL and its token.
// It writes down what it saw, a JSON object a line. Settings come from the environment, all named BOT_….

import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import { webcrypto } from "node:crypto";
import { WhatsAppAPI } from "whatsapp-api-js/middleware/node-http";
import {
    ActionButtons, ActionList, ActionLocation, Body, BodyComponent, BodyParameter, Button, Image, Interactive,
    ListSection, PayloadComponent, Reaction, Row, Template, Text
} from "whatsapp-api-js/messages";

globalThis.crypto ??= webcrypto; // Node 18

const { BOT_GATEWAY, BOT_TOKEN, BOT_SECRET, BOT_VERIFY_TOKEN, BOT_PORT, BOT_NOTEBOOK } = process.env;

const Whatsapp = new WhatsAppAPI({
    token: BOT_TOKEN,
    appSecret: BOT_SECRET,
    webhookVerifyToken: BOT_VERIFY_TOKEN,
    v: "v26.0",
    ponyfill: {
        fetch: (url, options) => fetch(String(url).replace("https://graph.facebook.com", BOT_GATEWAY), options)
    }
});

const note = (what, more) => appendFileSync(BOT_NOTEBOOK, JSON.stringify({ what, ...more }) + "\n");

const places = new Map(); // where in the tour each message of ours stands
const turns = new Map(); // one customer's messages are answered one after another
const seen = new Map(); // messages and statuses that came, by id, each with the promise of its handling

const placeIn = (text) => /\[([\w-]+:\d+)\]/.exec(text ?? "")[1];

/** Send, and write down under which id. Throws when it was refused. */
async function send({ phoneID, recipient }, message, place, context) {
    const answer = await Whatsapp.sendMessage(phoneID, recipient, message, context, place);
    if (answer.error) throw new Error(`refused at ${place}: ${JSON.stringify(answer.error)}`);
    const { id } = answer.messages[0];
    places.set(id, place);
    note("sent", { id, tracker: place });
}

/** Answer one message. */
async function answer(args) {
    const { message, received } = args;
    const noted = (place) => note("message", { id: message.id, place });
    if (message.type === "text") {
        const place = placeIn(message.text.body);
        const name = place.split(":")[0];
        noted(place);
        if (message.text.body.startsWith("Hello")) {
            await received("text");
            const buttons = new ActionButtons(new Button(`list:${name}`, "Show me"), new Button(`no:${name}`, "No"));
            return send(args, new Interactive(buttons, new Body(`What would you like? [${place}]`)), place, message.id);
        }
        if (message.text.body.startsWith("Where")) {
            return send(args, new Interactive(new ActionLocation(), new Body(`Where are you? [${place}]`)), place);
        }
        if (message.text.body.startsWith("Order")) {
            const words = ["Ada", "1042", `[${place}]`].map((word) => new BodyParameter(word));
            const reply = new PayloadComponent(`track:${name}`);
            return send(args, new Template("order_update", "en_US", new BodyComponent(...words), reply), place);
        }
        return send(args, new Text(`Once more [${place}]`), place, message.id);
    }
    if (message.type === "interactive" && message.interactive.type === "button_reply") {
        const place = `${message.interactive.button_reply.id.split(":")[1]}:1`;
        const name = place.split(":")[0];
        noted(place);
        const rows = ["Roses", "Tulips", "Lilies"].map((title, i) => new Row(`row:${name}:${i + 1}`, title));
        const list = new ActionList("Flowers", new ListSection("All", ...rows));
        return send(args, new Interactive(list, new Body(`Choose [${place}]`)), place);
    }
    if (message.type === "interactive") {
        const { id, title } = message.interactive.list_reply;
        const place = `${id.split(":")[1]}:2`;
        noted(place);
        return send(args, new Image("https://example.com/rose.jpg", false, `${title} [${place}]`), place);
    }
    if (message.type === "image") {
        const place = placeIn(message.image.caption);
        noted(place);
        await received();
        const { url } = await Whatsapp.retrieveMedia(message.image.id);
        const picture = await (await Whatsapp.fetchMedia(url)).arrayBuffer();
        const form = new FormData();
        form.set("messaging_product", "whatsapp");
        form.set("file", new Blob([picture], { type: message.image.mime_type }), "back.jpg");
        const { id } = await Whatsapp.uploadMedia(args.phoneID, form);
        return send(args, new Image(id, true, `Back [${place}]`), place, message.id);
    }
    if (message.type === "location") {
        const { latitude, longitude, name } = message.location;
        const place = placeIn(name);
        noted(place);
        return send(args, new Text(`${latitude},${longitude} [${place}]`), place, message.id);
    }
    if (message.type === "button") {
        const place = `${message.button.payload.split(":")[1]}:7`;
        noted(place);
        return send(args, new Reaction(message.id, "🌿"), place);
    }
    if (message.type === "reaction") {
        const [name, meant] = places.get(message.reaction.message_id).split(":");
        const place = `${name}:8`;
        noted(place);
        return send(args, new Text(`${message.reaction.emoji} to ${meant} [${place}]`), place);
    }
}

/** Handle what came once: what comes again waits for the first handling, and begins anew only when that failed. */
function once(id, handle) {
    if (!seen.has(id)) {
        const handling = handle();
        seen.set(id, handling);
        handling.catch((error) => {
            seen.delete(id);
            note("trouble", { why: String(error.stack) });
        });
    }
    return seen.get(id);
}

Whatsapp.on.message = (args) => once(args.message.id, () => {
    const customer = args.recipient.bsuid ?? args.recipient.phone;
    const turn = (turns.get(customer) ?? Promise.resolve()).then(() => answer(args));
    turns.set(customer, turn.catch(() => {}));
    return turn;
});

Whatsapp.on.status = ({ id, status, biz_opaque_callback_data: tracker }) => once(`${id} ${status}`, async () => {
    note("status", { id, status, tracker });
});

createServer(async (request, response) => {
    if (request.method === "GET") {
        try {
            response.end(Whatsapp.handle_get(request));
        } catch (status) {
            response.statusCode = status;
            response.end();
        }
        return;
    }
    response.statusCode = await Whatsapp.handle_post(request);
    response.end();
}).listen(Number(BOT_PORT), "127.0.0.1");
