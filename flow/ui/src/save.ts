// A trace as one HTML file: the dashboard's own script and style inside it, and a policy that lets nothing else run
// and nothing be loaded. Must never let a name of the trace end the element that holds it.
import type { Trace } from './api'

export function saved(): Trace | undefined {
  const held = document.getElementById('saved-trace')?.textContent
  return held ? (JSON.parse(held) as Trace) : undefined
}

const meta = (name: string) => document.querySelector<HTMLMetaElement>(`meta[name="${name}"]`)?.content ?? ''

export async function save(trace: Trace): Promise<void> {
  const files = ['/app.js', '/app.css'].map(async path => (await fetch(path)).text())
  const [script, style] = await Promise.all(files)
  const policy = `default-src 'none'; script-src '${meta('throughline-script')}'; style-src '${meta('throughline-style')}'; img-src data:; base-uri 'none'; form-action 'none'`
  const held = JSON.stringify(trace).replaceAll('<', '\\u003c')
  const page = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>Trace ${trace.traceId}</title><link rel="icon" href="data:,"><style>${style}</style></head>
<body><div id="app"></div><script type="application/json" id="saved-trace">${held}</script><script>${script}</script></body></html>
`
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([page], { type: 'text/html' }))
  link.download = `trace-${trace.traceId}.html`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}
