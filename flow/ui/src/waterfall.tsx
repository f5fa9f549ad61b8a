// The waterfall: only rows in view are in the page, and they are used again as it scrolls. One tree grid for the
// keyboard and for those who listen. Must never touch more elements than are in view.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from 'preact/hooks'
import type { Trace } from './api'
import { ns, plural } from './format'
import { useKeys } from './keys'
import { pieces, reveal, rows, type FoldRow, type Row, type Tree } from './rows'

export interface Handle { show: (at: number) => void }

const ROW = 28
const MORE = 6
const DEPTH_MAX = 14

interface Props { tree: Tree; trace: Trace; chosen: number | undefined; choose: (at: number | undefined) => void; handle: { current: Handle | null } }

export function Waterfall({ tree, trace, chosen, choose, handle }: Props) {
  const [closed, setClosed] = useState<Set<number>>(new Set())
  const [unfolded, setUnfolded] = useState<Set<string>>(new Set())
  const [critical, setCritical] = useState(true)
  const [view, setView] = useState<[number, number]>([tree.begin, tree.end])
  const [cursor, setCursor] = useState(0)
  const [scroll, setScroll] = useState(0)
  const [height, setHeight] = useState(600)
  const grid = useRef<HTMLDivElement>(null)
  const shown = useMemo(() => rows(tree, closed, unfolded), [tree, closed, unfolded])
  const wanted = useRef<number | undefined>(undefined)
  const at = Math.min(cursor, shown.length - 1)

  useLayoutEffect(() => {
    const element = grid.current
    if (!element) return
    const measure = new ResizeObserver(() => setHeight(element.clientHeight))
    measure.observe(element)
    return () => measure.disconnect()
  }, [])
  useEffect(() => { setView([tree.begin, tree.end]) }, [tree])

  const bring = (place: number, middle = false) => {
    const element = grid.current
    if (!element) return
    const top = place * ROW
    if (middle || top < element.scrollTop || top + ROW > element.scrollTop + element.clientHeight) {
      element.scrollTop = top - (middle || top < element.scrollTop ? element.clientHeight / 3 : element.clientHeight - 2 * ROW)
    }
    setScroll(element.scrollTop)
  }
  const move = (place: number) => {
    const next = Math.max(0, Math.min(shown.length - 1, place))
    setCursor(next)
    bring(next)
  }
  const show = (span: number) => {
    const [shut, open] = reveal(tree, span, closed, unfolded)
    // Only what hides it is opened: the row is looked for when the rows are there.
    const visible = shown.findIndex(row => row.kind === 'span' && row.at === span)
    if (visible >= 0) { setCursor(visible); bring(visible, true); return }
    setClosed(shut)
    setUnfolded(open)
    wanted.current = span
  }
  handle.current = { show }
  useLayoutEffect(() => {
    if (wanted.current === undefined) return
    const place = shown.findIndex(row => row.kind === 'span' && row.at === wanted.current)
    wanted.current = undefined
    if (place >= 0) { setCursor(place); bring(place, true) }
  }, [shown])

  const toggle = (row: Row, open = !row.open) => {
    if (row.kind === 'fold') {
      const next = new Set(unfolded)
      if (open) next.add(row.key)
      else next.delete(row.key)
      setUnfolded(next)
    } else {
      const next = new Set(closed)
      if (open) next.delete(row.at)
      else next.add(row.at)
      setClosed(next)
    }
  }
  const hasMore = (row: Row) => row.kind === 'fold' || tree.items[row.at]!.children.length > 0
  const failure = (by: number) => {
    if (!tree.errors.length) return
    const row = shown[at]
    const here = chosen ?? (row?.kind === 'span' ? row.at : row?.members[0] ?? 0)
    const next = by > 0
      ? tree.errors.find(error => error > here) ?? tree.errors[0]!
      : [...tree.errors].reverse().find(error => error < here) ?? tree.errors[tree.errors.length - 1]!
    choose(next)
    show(next)
  }
  const zoom = (by: number) => {
    const row = shown[at]
    const middle = row?.kind === 'span' ? (tree.items[row.at]!.start + tree.items[row.at]!.end) / 2 : (view[0] + view[1]) / 2
    const half = Math.max(500, ((view[1] - view[0]) * by) / 2)
    setView([Math.max(tree.begin, middle - half), Math.min(tree.end, middle + half)])
  }
  const whole = () => setView([tree.begin, tree.end])
  const toSpan = () => {
    const row = shown[at]
    if (row?.kind !== 'span') return
    const { start, end } = tree.items[row.at]!
    const room = Math.max(500, (end - start) * 0.05)
    setView([Math.max(tree.begin, start - room), Math.min(tree.end, end + room)])
  }
  useKeys([
    { keys: ']', does: 'Next error', run: () => failure(1) },
    { keys: '[', does: 'Error before', run: () => failure(-1) },
    { keys: 'c', does: 'Critical path on or off', run: () => setCritical(now => !now) },
    { keys: '+, =', does: 'Closer', run: () => zoom(0.5) },
    { keys: '-', does: 'Farther', run: () => zoom(2) },
    { keys: 'z', does: 'Fill the width with this span', run: toSpan },
    { keys: '0', does: 'The whole trace', run: whole },
    { keys: 'j', does: 'Next row', run: () => { grid.current?.focus(); move(at + 1) } },
    { keys: 'k', does: 'Row before', run: () => { grid.current?.focus(); move(at - 1) } },
    { keys: 'y', does: 'Copy the address of this view', run: () => void navigator.clipboard?.writeText(location.href) },
  ])
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const row = shown[at]
    const page = Math.max(1, Math.floor(height / ROW) - 2)
    const steps: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: shown.length - 1 }
    if (event.key in steps) move(steps[event.key]!)
    else if (row && event.key === 'ArrowRight') row.open || !hasMore(row) ? move(at + 1) : toggle(row, true)
    else if (row && event.key === 'ArrowLeft') {
      if (row.open && hasMore(row)) toggle(row, false)
      else for (let place = at - 1; place >= 0; place--) if (shown[place]!.depth < row.depth) { move(place); break }
    } else if (row && (event.key === 'Enter' || event.key === ' ')) row.kind === 'fold' ? toggle(row) : choose(chosen === row.at ? undefined : row.at)
    else return
    event.preventDefault()
    event.stopPropagation()
  }

  const pending = useRef(false)
  const onScroll = () => {
    if (pending.current) return
    pending.current = true
    requestAnimationFrame(() => { pending.current = false; if (grid.current) setScroll(grid.current.scrollTop) })
  }
  const first = Math.max(0, Math.floor(scroll / ROW) - MORE)
  const last = Math.min(shown.length, Math.ceil((scroll + height) / ROW) + MORE)
  const slots = Math.ceil(height / ROW) + 2 * MORE + 2
  const [from, until] = view
  const share = (nanos: number) => ((nanos - from) / (until - from)) * 100
  const visible = []
  for (let place = first; place < last; place++) visible.push(place)
  return <section class="panel waterfall" aria-label="Waterfall">
    <header class="panel-head">
      <h2>Waterfall</h2>
      <div class="buttons">
        {tree.errors.length > 0 && <><button type="button" onClick={() => failure(-1)} aria-label="Error before">[ ✕</button><button type="button" onClick={() => failure(1)} aria-label="Next error">✕ ]</button></>}
        <button type="button" aria-pressed={critical} onClick={() => setCritical(!critical)}>Critical path</button>
        <button type="button" onClick={() => zoom(0.5)} aria-label="Closer">+</button>
        <button type="button" onClick={() => zoom(2)} aria-label="Farther">−</button>
        <button type="button" onClick={whole} disabled={from === tree.begin && until === tree.end}>Whole</button>
      </div>
    </header>
    <Minimap tree={tree} view={view} setView={setView} />
    <div class="scale" aria-hidden="true"><span />{[0, 0.25, 0.5, 0.75, 1].map(part => <i key={part} style={{ left: `calc(var(--names) + (100% - var(--names) - 5.5rem) * ${part})` }}>{ns(from - tree.begin + (until - from) * part)}</i>)}</div>
    <div class="rows" ref={grid} role="treegrid" tabIndex={0} aria-label={`${plural(trace.spans.length, 'span')}; arrows move and open, Enter shows details`} aria-rowcount={shown.length} aria-colcount={2} aria-readonly="true" aria-activedescendant={at >= first && at < last ? `row-${at}` : undefined} onScroll={onScroll} onKeyDown={onKeyDown}>
      <div class="spacer" role="rowgroup" style={{ height: `${shown.length * ROW}px` }}>
        {visible.map(place => {
          const row = shown[place]!
          const click = () => {
            setCursor(place)
            grid.current?.focus({ preventScroll: true })
            if (row.kind === 'fold') toggle(row)
            else choose(chosen === row.at ? undefined : row.at)
          }
          const common = {
            id: `row-${place}`, role: 'row', 'aria-rowindex': place + 1, 'aria-level': row.depth + 1, 'aria-posinset': row.position, 'aria-setsize': row.siblings,
            'aria-expanded': hasMore(row) ? row.open : undefined, style: { transform: `translateY(${place * ROW}px)` }, onClick: click,
          } as const
          const indent = { 'padding-left': `${Math.min(row.depth, DEPTH_MAX) * 14 + 6}px` }
          const twist = hasMore(row) ? <span class="twist" aria-hidden="true" onClick={event => { event.stopPropagation(); toggle(row) }}>{row.open ? '▾' : '▸'}</span> : <span class="twist" aria-hidden="true" />
          const deep = row.depth > DEPTH_MAX ? <span class="deep" aria-hidden="true">{row.depth}</span> : null
          if (row.kind === 'fold') {
            return <div key={place % slots} {...common} class={`row fold${place === at ? ' cursor' : ''}`}>
              <Fold row={row} tree={tree} share={share} indent={indent} twist={twist} deep={deep} />
            </div>
          }
          const item = tree.items[row.at]!
          const { span } = item
          const color = tree.hues.get(span.service.name)
          const [left, right] = [share(item.start), share(item.end)]
          return <div key={place % slots} {...common} aria-selected={chosen === row.at} class={`row${place === at ? ' cursor' : ''}${chosen === row.at ? ' chosen' : ''}${item.error ? ' failed' : ''}${critical && item.critical.length ? ' on-path' : ''}`}>
            <div class="who" role="gridcell" style={indent}>{twist}{deep}<i class={`dot hue${color}`} aria-hidden="true" />{item.error && <b class="cross" title="failed"><span aria-hidden="true">✕</span><span class="visually-hidden">failed </span></b>}<span class="service">{span.service.name}</span> <span class="span-name">{span.name}</span>{!row.open && item.errorsBelow > 0 && <b class="cross">✕ {item.errorsBelow}</b>}</div>
            <div class="time" role="gridcell"><div class="lane" aria-hidden="true">
              {right >= 0 && left <= 100 && <i class={`bar hue${color} ${span.kind}`} style={{ left: `${Math.max(-1, left)}%`, width: `${Math.min(101, right) - Math.max(-1, left)}%` }} />}
              {critical && pieces(item.critical, share).map(([a, b], piece) => <i key={piece} class="critical" style={{ left: `${a}%`, width: `${b - a}%` }} />)}
            </div><span class="took">{ns(span.duration)}</span></div>
          </div>
        })}
      </div>
    </div>
  </section>
}

function Fold({ row, tree, share, indent, twist, deep }: { row: FoldRow; tree: Tree; share: (nanos: number) => number; indent: Record<string, string>; twist: preact.JSX.Element; deep: preact.JSX.Element | null }) {
  const items = row.members.map(at => tree.items[at]!)
  const { span } = items[0]!
  let [start, end, sum, errors] = [Infinity, -Infinity, 0, 0]
  for (const item of items) {
    start = Math.min(start, item.start)
    end = Math.max(end, item.end)
    sum += item.span.duration
    errors += item.errorsBelow + (item.error ? 1 : 0)
  }
  const [left, right] = [Math.max(0, share(start)), Math.min(100, share(end))]
  const color = tree.hues.get(span.service.name)
  return <>
    <div class="who" role="gridcell" style={indent}>{twist}{deep}<i class={`dot hue${color}`} aria-hidden="true" />{errors > 0 && <b class="cross">✕ {errors}</b>}<span class="service">{span.service.name}</span> <span class="span-name">{span.name}</span> <b class="times">× {items.length}</b></div>
    <div class="time" role="gridcell"><div class="lane" aria-hidden="true">{right > left && <i class={`bar many hue${color}`} style={{ left: `${left}%`, width: `${right - left}%` }} />}</div><span class="took" title="together">Σ {ns(sum)}</span></div>
  </>
}

/** All spans at once, small; a drag chooses what the rows show. */
function Minimap({ tree, view, setView }: { tree: Tree; view: [number, number]; setView: (view: [number, number]) => void }) {
  const canvas = useRef<HTMLCanvasElement>(null)
  const [drag, setDrag] = useState<[number, number]>()
  const [width, setWidth] = useState(0)
  useLayoutEffect(() => {
    const element = canvas.current
    if (!element) return
    const measure = new ResizeObserver(() => setWidth(element.clientWidth))
    measure.observe(element)
    return () => measure.disconnect()
  }, [])
  useEffect(() => {
    const element = canvas.current
    const pen = element?.getContext('2d')
    if (!element || !pen || !width) return
    const height = 44
    const ratio = devicePixelRatio || 1
    element.width = width * ratio
    element.height = height * ratio
    pen.scale(ratio, ratio)
    const style = getComputedStyle(element)
    const colors = [style.getPropertyValue('--thread'), style.getPropertyValue('--bad')] as const
    const lines = Math.max(1, tree.items.length)
    const thick = Math.max(1, Math.min(3, (height - 4) / lines))
    // One span of several that would cover each other is enough, unless it failed.
    const seen = new Set<number>()
    for (const item of tree.items) {
      const y = Math.floor(2 + (item.at / lines) * (height - 4 - thick))
      const x = ((item.start - tree.begin) / (tree.end - tree.begin)) * width
      const long = Math.max(1, ((item.end - item.start) / (tree.end - tree.begin)) * width)
      const key = y * 4096 + Math.min(4095, Math.floor(x))
      if (!item.error && seen.has(key)) continue
      seen.add(key)
      pen.fillStyle = colors[item.error ? 1 : 0]
      pen.globalAlpha = item.error ? 1 : 0.55
      pen.fillRect(x, y, long, thick)
    }
  }, [tree, width])
  const place = (event: MouseEvent) => {
    const box = canvas.current!.getBoundingClientRect()
    return tree.begin + Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * (tree.end - tree.begin)
  }
  const [a, b] = drag ? [Math.min(...drag), Math.max(...drag)] : view
  const share = (nanos: number) => `${((nanos - tree.begin) / (tree.end - tree.begin)) * 100}%`
  return <div class="minimap" aria-hidden="true"
    onPointerDown={event => { event.currentTarget.setPointerCapture(event.pointerId); const at = place(event); setDrag([at, at]) }}
    onPointerMove={event => { if (drag) setDrag([drag[0], place(event)]) }}
    onPointerUp={() => {
      if (drag && Math.abs(drag[1] - drag[0]) > (tree.end - tree.begin) / 500) setView([a, b])
      setDrag(undefined)
    }}
    onDblClick={() => setView([tree.begin, tree.end])}>
    <canvas ref={canvas} />
    <i class="outside" style={{ left: 0, width: share(a) }} /><i class="outside" style={{ left: share(b), right: 0 }} />
  </div>
}
