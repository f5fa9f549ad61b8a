// A trace as the rows of its waterfall: who hangs under whom, what is folded, what is on the critical path. Pure:
// reads a trace, draws nothing.
import type { Span, Trace } from './api'

export interface Item { span: Span; at: number; parent: number; depth: number; children: number[]; start: number; end: number; error: boolean; errorsBelow: number; critical: [number, number][] }
export interface Tree { items: Item[]; roots: number[]; byId: Map<string, number>; begin: number; end: number; errors: number[]; hues: Map<string, number> }
export interface SpanRow { kind: 'span'; at: number; depth: number; open: boolean; position: number; siblings: number }
export interface FoldRow { kind: 'fold'; key: string; members: number[]; depth: number; open: boolean; position: number; siblings: number }
export type Row = SpanRow | FoldRow

/** Siblings of one name from which on they are shown as one row. */
export const FOLD_FROM = 8

export function isError(span: Span): boolean {
  return span.status === 'ERROR' || Number(span.attributes['http.response.status_code'] ?? 0) >= 500
}

export function tree(trace: Trace): Tree {
  const byId = new Map<string, number>()
  const items: Item[] = []
  const roots: number[] = []
  for (const span of trace.spans) {
    const at = items.length
    const found = span.parentSpanId === undefined || span.note === 'cycle' ? undefined : byId.get(span.parentSpanId)
    const parent = found ?? -1
    const above = items[parent]
    const skew = span.skew ?? 0
    items.push({
      span, at, parent,
      depth: above ? above.depth + 1 : 0,
      children: [],
      start: span.startTime - trace.startTime + skew,
      end: span.startTime - trace.startTime + span.duration + skew,
      error: isError(span),
      errorsBelow: 0,
      critical: [],
    })
    byId.set(span.spanId, at)
    if (above) above.children.push(at)
    else roots.push(at)
  }
  let begin = Infinity, end = -Infinity
  const errors: number[] = []
  // By who comes first, so that the first eight services differ.
  const hues = new Map<string, number>()
  for (const item of items) {
    begin = Math.min(begin, item.start)
    end = Math.max(end, item.end)
    if (item.error) errors.push(item.at)
    if (!hues.has(item.span.service.name)) hues.set(item.span.service.name, hues.size % 8)
  }
  // Children come after their parents, so that one way back adds up all below.
  for (let at = items.length - 1; at >= 0; at--) {
    const item = items[at]!
    const above = items[item.parent]
    if (above) above.errorsBelow += item.errorsBelow + (item.error ? 1 : 0)
  }
  for (const piece of trace.criticalPath) {
    const item = items[byId.get(piece.spanId) ?? -1]
    if (!item) continue
    const start = piece.startTime - trace.startTime
    item.critical.push([start, start + piece.duration])
  }
  for (const item of items) item.critical.sort(([one], [other]) => one - other)
  if (!items.length) begin = end = 0
  return { items, roots, byId, begin, end: Math.max(end, begin + 1), errors, hues }
}

const keyOf = (item: Item) => `${item.parent}\n${item.span.kind}\n${item.span.service.name}\n${item.span.name}`

/** The rows to show. `closed` are spans whose children are hidden, `unfolded` the folds that are open. */
export function rows(tree: Tree, closed: ReadonlySet<number>, unfolded: ReadonlySet<string>): Row[] {
  const out: Row[] = []
  // A stack and no recursion: traces may be as deep as they are long.
  interface Task { row: Row; children: number[] | undefined }
  const stack: Task[] = []
  const push = (children: number[], depth: number) => {
    const groups = new Map<string, number[]>()
    for (const at of children) {
      const key = keyOf(tree.items[at]!)
      const group = groups.get(key)
      if (group) group.push(at)
      else groups.set(key, [at])
    }
    const tasks: Task[] = []
    const span = (at: number, depth: number): Task => ({
      row: { kind: 'span', at, depth, open: !closed.has(at), position: 0, siblings: 0 },
      children: tree.items[at]!.children,
    })
    for (const [key, members] of groups) {
      if (members.length < FOLD_FROM) tasks.push(...members.map(at => span(at, depth)))
      else tasks.push({ row: { kind: 'fold', key, members, depth, open: unfolded.has(key), position: 0, siblings: 0 }, children: undefined })
    }
    // By time, as they are in the trace.
    const first = ({ row }: Task) => (row.kind === 'span' ? row.at : row.members[0]!)
    tasks.sort((one, other) => first(one) - first(other))
    tasks.forEach(({ row }, place) => { row.position = place + 1; row.siblings = tasks.length })
    for (let place = tasks.length - 1; place >= 0; place--) stack.push(tasks[place]!)
  }
  push(tree.roots, 0)
  while (stack.length) {
    const { row, children } = stack.pop()!
    out.push(row)
    if (!row.open) continue
    if (row.kind === 'span') push(children!, row.depth + 1)
    else {
      for (let place = row.members.length - 1; place >= 0; place--) {
        const at = row.members[place]!
        stack.push({ row: { kind: 'span', at, depth: row.depth + 1, open: !closed.has(at), position: place + 1, siblings: row.members.length }, children: tree.items[at]!.children })
      }
    }
  }
  return out
}

/** Pieces of the critical path as shares of the width: those that would touch on the screen are one. */
export function pieces(of: [number, number][], share: (nanos: number) => number): [number, number][] {
  const out: [number, number][] = []
  for (const [start, end] of of) {
    const [a, b] = [Math.max(0, share(start)), Math.min(100, share(end))]
    if (b <= a) continue
    const last = out[out.length - 1]
    if (last && a - last[1] < 0.15) last[1] = Math.max(last[1], b)
    else out.push([a, b])
  }
  return out
}

/** Opens whatever hides a span. */
export function reveal(tree: Tree, at: number, closed: ReadonlySet<number>, unfolded: ReadonlySet<string>): [Set<number>, Set<string>] {
  const [shut, open] = [new Set(closed), new Set(unfolded)]
  for (let item = tree.items[at]; item; item = tree.items[item.parent]) {
    if (item.at !== at) shut.delete(item.at)
    open.add(keyOf(item))
  }
  return [shut, open]
}
