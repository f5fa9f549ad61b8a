// Parts that several pages share: cards, filters, tables, states, verdicts.
import type { ComponentChildren } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { ask, Failed, type Finding, type Health, type Outcome, type Verdict } from './api'
import { plural } from './format'
import { useKeys } from './keys'
import { useChanges } from './live'
import { go, put, to } from './route'

export interface Asked<T> { value?: T; error?: Failed; loading: boolean; again: () => void }

/** Asks for `path`, again when it changes, and again when flows have ended where `live` says so. */
export function useAsk<T>(path: string | undefined, live = false): Asked<T> {
  const [held, set] = useState<{ path?: string; value?: T; error?: Failed }>({})
  const [turn, setTurn] = useState(0)
  const again = () => setTurn(turn => turn + 1)
  useChanges(() => { if (live) again() })
  useEffect(() => {
    if (!live) return
    const timer = setInterval(() => { if (!document.hidden) again() }, 15_000)
    return () => clearInterval(timer)
  }, [live])
  useEffect(() => {
    if (path === undefined) return
    const control = new AbortController()
    ask<T>(path, control.signal).then(
      value => set({ path, value }),
      error => {
        if (error.name === 'AbortError') return
        const failed = error instanceof Failed ? error : new Failed(0, String(error))
        set(held => ({ path, error: failed, ...(held.path === path && failed.status === 0 ? { value: held.value } : {}) }))
      },
    )
    return () => control.abort()
  }, [path, turn])
  // What another filter gave stays until the new answer is there, but not what another page gave.
  const same = held.path?.split('?')[0] === path?.split('?')[0]
  return { value: same ? held.value : undefined, error: same ? held.error : undefined, loading: held.path !== path, again }
}

/** The answer, or what stands in its place. */
export function Answer<T>({ of, children, what }: { of: Asked<T>; children: (value: T) => ComponentChildren; what: string }) {
  if (of.value !== undefined) {
    return <>
      {of.error && <Problem error={of.error} again={of.again} what={what} />}
      <div class="answer" aria-busy={of.loading}>{children(of.value)}</div>
    </>
  }
  if (of.error) return <Problem error={of.error} again={of.again} what={what} />
  return <div class="loading" role="status"><span class="visually-hidden">Loading {what}</span><i /><i /><i /></div>
}

function Problem({ error, again, what }: { error: Failed; again: () => void; what: string }) {
  const missing = error.status === 404
  return <div class={missing ? 'state' : 'state bad'} role={missing ? undefined : 'alert'}>
    <h2>{missing ? 'Nothing here' : `Could not load ${what}`}</h2>
    <p>{error.message}</p>
    {error.status === 401 && <p>From another host, open it through a tunnel to the server, such as <code>kubectl port-forward</code>: callers on the same host need no token.</p>}
    <p><button type="button" onClick={again}>Try again</button></p>
  </div>
}

export function Empty({ title, children }: { title: string; children: ComponentChildren }) {
  return <div class="state"><h2>{title}</h2>{children}</div>
}

/** What to do where nothing has come in yet. */
export function Start() {
  return <Empty title="No requests in this time">
    <p>Choose a longer time range, or send something:</p>
    <ol>
      <li><code>make demo</code> starts a shop with sidecars that report here.</li>
      <li>Point a sidecar or an OpenTelemetry SDK here: <code>OTEL_EXPORTER_OTLP_ENDPOINT=http://{location.hostname || 'localhost'}:4318</code></li>
      <li>Name what users do: send <code>X-Operation-Name: login</code> with a request.</li>
    </ol>
  </Empty>
}

const SHAPES: Record<Health, string> = { healthy: '●', degraded: '▲', down: '✕' }
export const shape = (health: Health) => SHAPES[health]
export function HealthMark({ of }: { of: Health }) {
  return <span class={`mark ${of}`}><span aria-hidden="true">{SHAPES[of]}</span> {of}</span>
}
const OUTCOMES: Record<Outcome, [string, string]> = { success: ['✓', 'healthy'], error: ['✕', 'down'], timeout: ['◷', 'degraded'] }
export function OutcomeMark({ of }: { of: Outcome }) {
  const [sign, mood] = OUTCOMES[of] ?? ['?', '']
  return <span class={`mark ${mood}`}><span aria-hidden="true">{sign}</span> {of}</span>
}

export function Cards({ of }: { of: { name: string; value: string; note?: string; bad?: boolean }[] }) {
  return <dl class="cards">{of.map(({ name, value, note, bad }) =>
    <div class={bad ? 'card bad' : 'card'} key={name}><dt>{name}</dt><dd><b>{value}</b>{note && <small>{note}</small>}</dd></div>)}
  </dl>
}

export const RANGES: [string, string][] = [['15m', 'Last 15 min'], ['1h', 'Last hour'], ['6h', 'Last 6 hours'], ['1d', 'Last day'], ['7d', 'Last 7 days']]
export const since = (params: URLSearchParams) => `now-${/^\d+[smhdw]$/.test(params.get('range') ?? '') ? params.get('range') : '1h'}`

interface Choice { key: string; label: string; all: string; values: readonly (string | [string, string])[] }

/** Filters that stand in the address. */
export function Filters({ params, of, children }: { params: URLSearchParams; of: Choice[]; children?: ComponentChildren }) {
  const choices = [...of, { key: 'range', label: 'Time range', all: '', values: RANGES }]
  return <form class="filters" role="search" aria-label="Filters" onSubmit={event => event.preventDefault()}>
    {choices.map(({ key, label, all, values }) => {
      const now = params.get(key) ?? (key === 'range' ? '1h' : '')
      const pairs = values.map(value => (typeof value === 'string' ? [value, value] as const : value))
      const known = now === '' || pairs.some(([value]) => value === now)
      return <label key={key}>{label}
        <select value={now} onChange={event => put({ [key]: event.currentTarget.value, page: undefined })}>
          {all && <option value="">{all}</option>}
          {!known && <option value={now}>{now}</option>}
          {pairs.map(([value, text]) => <option key={value} value={value} selected={value === now}>{text}</option>)}
        </select>
      </label>
    })}
    {children}
  </form>
}

/** A search over what is shown; `/` goes there. */
export function Search({ value, label, onInput }: { value: string; label: string; onInput: (text: string) => void }) {
  const field = useRef<HTMLInputElement>(null)
  useKeys([{ keys: '/', does: label, run: () => field.current?.focus() }])
  return <label class="search">{label}
    <input ref={field} type="search" value={value} placeholder="Press /" onInput={event => onInput(event.currentTarget.value)} />
  </label>
}

export interface Column<T> { name: string; number?: boolean; sort?: (row: T) => number | string; cell: (row: T) => ComponentChildren; bar?: (row: T) => number }

/** A table: sortable, `j` and `k` go through its rows, Enter opens one. */
export function Table<T>({ caption, columns, rows, href, keyOf, initial = -1 }: { caption: string; columns: Column<T>[]; rows: T[]; href?: (row: T) => string | undefined; keyOf: (row: T) => string; initial?: number }) {
  const [sort, setSort] = useState<[number, boolean]>([initial, true])
  const body = useRef<HTMLTableSectionElement>(null)
  const by = columns[sort[0]]?.sort
  const sorted = by ? [...rows].sort((one, other) => {
    const [a, b] = [by(one), by(other)]
    return (a < b ? -1 : a > b ? 1 : 0) * (sort[1] ? -1 : 1)
  }) : rows
  const step = (by: number) => {
    const links = [...(body.current?.querySelectorAll<HTMLElement>('tr > :first-child a') ?? [])]
    const at = links.indexOf(document.activeElement as HTMLElement)
    links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + by))]?.focus()
  }
  useKeys(href ? [
    { keys: 'j', does: 'Next row', run: () => step(1) },
    { keys: 'k', does: 'Row before', run: () => step(-1) },
  ] : [])
  return <div class="table" tabIndex={0} role="region" aria-label={caption}>
    <table>
      <caption class="visually-hidden">{caption}</caption>
      <thead><tr>{columns.map((column, place) => {
        const now = sort[0] === place
        return <th key={column.name} scope="col" class={column.number ? 'number' : undefined} aria-sort={now ? (sort[1] ? 'descending' : 'ascending') : undefined}>
          {column.sort ? <button type="button" onClick={() => setSort([place, now ? !sort[1] : true])}>{column.name}<span aria-hidden="true">{now ? (sort[1] ? ' ▾' : ' ▴') : ''}</span></button> : column.name}
        </th>
      })}</tr></thead>
      <tbody ref={body}>{sorted.map(row => {
        const opens = href?.(row)
        return <tr key={keyOf(row)} onClick={event => { if (opens && !(event.target as Element).closest('a, button') && !getSelection()?.toString()) go(opens) }} class={opens ? 'opens' : undefined}>
          {columns.map((column, place) => {
            const cell = place === 0 && opens ? <a href={opens}>{column.cell(row)}</a> : column.cell(row)
            return place === 0 ? <th key={place} scope="row">{cell}</th> : <td key={place} class={column.number ? 'number' : undefined}>{cell}</td>
          })}
        </tr>
      })}
      </tbody>
    </table>
  </div>
}

const VERDICTS: Record<string, string> = {
  app_dropped: 'The application dropped the context',
  app_restarted: 'The application began another trace',
  not_injected: 'No sidecar reported this hop',
  sampled_out: 'Spans of this hop were not sampled',
  async_unlinked: 'A message is not linked to its sender',
  late: 'Spans have not arrived yet',
}

/** What the Doctor says: hop, reason, fix. */
export function Verdicts({ of, jump, spans }: { of: Verdict[]; jump?: (spanId: string) => void; spans?: (spanId: string) => boolean }) {
  return <ul class="verdicts">{of.map((verdict, place) => {
    const { from, to: reached, route, spanId } = verdict.hop
    return <li key={place} class={verdict.verdict === 'late' || verdict.verdict === 'sampled_out' ? 'note' : undefined}>
      <h3><span class="mark degraded" aria-hidden="true">▲</span> {VERDICTS[verdict.verdict] ?? verdict.verdict}{verdict.count !== undefined && verdict.count > 1 && <small> {plural(verdict.count, 'time')}</small>}</h3>
      <p class="hop"><b>{from || 'unknown'}</b> {reached && <>→ <b>{reached}</b> </>}{route && <code>{route}</code>}</p>
      <p>{verdict.reason}</p>
      <p class="fix"><b>Fix:</b> {verdict.fix}</p>
      <p class="actions">
        {spanId && jump && spans?.(spanId) && <button type="button" onClick={() => jump(spanId)}>Show the span</button>}
        {verdict.traceId && <a href={to('traces', verdict.traceId)}>A trace that shows it</a>}
      </p>
    </li>
  })}</ul>
}

const FINDINGS: Record<string, string> = { retries: 'Retries', timeout: 'Timeout', n_plus_one: 'Repeated calls (N+1)' }
export function Findings({ of, jump }: { of: Finding[]; jump: (spanId: string) => void }) {
  return <ul class="verdicts findings">{of.map((finding, place) => <li key={place}>
    <h3>{FINDINGS[finding.kind] ?? finding.kind} <small>{finding.service}</small></h3>
    <p>{finding.text}</p>
    <p class="actions"><button type="button" onClick={() => jump(finding.spanIds[0] || finding.spanId)}>Show the span</button></p>
  </li>)}</ul>
}

/** Copies a text, and says that it did. */
export function Copy({ text, label, short }: { text: () => string; label: string; short?: string }) {
  const [done, set] = useState('')
  const copy = async () => {
    const value = text()
    try {
      await navigator.clipboard.writeText(value)
      set('Copied')
    } catch {
      // Without a secure origin there is no clipboard: the old way.
      const field = document.createElement('textarea')
      field.value = value
      document.body.append(field)
      field.select()
      set(document.execCommand('copy') ? 'Copied' : 'Could not copy')
      field.remove()
    }
    setTimeout(() => set(''), 2000)
  }
  return <button type="button" class="copy" aria-label={label} onClick={copy}><span aria-live="polite">{done || short || label}</span></button>
}
