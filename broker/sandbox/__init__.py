"""Meta's stand-in: the platform's rules, its misbehaviour, its customers, and the page to try it all by hand.

```
 customers ──▶ platform ──▶ postbox ──webhooks, signed──▶ whoever receives
                  ▲  │
 Graph calls ─────┘  └──▶ journal ──▶ history (bubbles of the phone) · referee (verdicts) · file, events
```

`platform` decides as Meta does: tokens, payloads, the tier of a sliding second, the pair limit, the customer service
window, templates, the portfolio. `limits`, `payload`, `templates` and `people` hold the rules, `shapes` Meta's words.
`faults` misbehaves by seed and counts each time it strikes. `postbox` carries webhooks: batched, repeated, late, and
again until they are answered with 200. `journal` writes down all a real Meta would have seen; `history` and `referee`
read it as it is written. `customers` write, wait, answer, read and opt out, `tour` asks a bot for all it can do, `load`
lets many of them loose. Up to here time comes from the injected clock and asyncio's timers and chance from an injected
generator, so that a simulation runs it without sockets.
`app` and `phone/` put it on HTTP and on a page, `bots` are two bots to talk to.

It is a referee: it reads payloads by its own understanding of Meta's documents and shares no rule with the broker.
"""
