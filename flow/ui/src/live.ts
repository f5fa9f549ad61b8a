// The live view: one WebSocket for the whole page, opened again by itself, ever less often. Tells pages that flows
// came to their end, and everybody whether it is connected.
import { useEffect, useRef, useState } from 'preact/hooks'

export interface Flow { flowId: string; traceId: string; operationName: string; environment: string; currentService: string; progress: number; elapsedTime: number; startTime: number; spanCount: number; status?: string }
export type State = 'connected' | 'connecting' | 'waiting'
interface Message { type: 'flow_start' | 'flow_update' | 'flow_complete' | 'error'; data: Flow & { message?: string } }

const readers = new Set<(message: Message) => void>()
const watchers = new Set<() => void>()
let state: State = 'connecting'
let tries = 0
let socket: WebSocket | undefined

function change(next: State) {
  state = next
  watchers.forEach(watcher => watcher())
}

export function connect(): void {
  change('connecting')
  socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/api/v1/live`)
  socket.onopen = () => {
    tries = 0
    socket?.send('{"type":"subscribe","filters":{}}')
    change('connected')
  }
  socket.onmessage = event => {
    const message = JSON.parse(event.data) as Message
    readers.forEach(reader => reader(message))
  }
  socket.onclose = () => {
    change('waiting')
    setTimeout(connect, Math.min(15_000, 500 * 2 ** tries++))
  }
}

export function useConnection(): State {
  const [now, set] = useState(state)
  useEffect(() => {
    const update = () => set(state)
    watchers.add(update)
    update()
    return () => { watchers.delete(update) }
  }, [])
  return now
}

/** Calls `changed` when flows have ended, at the most once in `every` milliseconds. */
export function useChanges(changed: () => void, every = 2000): void {
  const latest = useRef(changed)
  latest.current = changed
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined
    const reader = (message: Message) => {
      if (message.type !== 'flow_complete' || timer) return
      timer = setTimeout(() => { timer = undefined; if (!document.hidden) latest.current() }, every)
    }
    readers.add(reader)
    return () => { readers.delete(reader); clearTimeout(timer) }
  }, [every])
}

const UNDER_WAY_MAX = 50

/** Flows under way, those that began last first. */
export function useFlows(): Flow[] {
  const [flows, set] = useState<Flow[]>([])
  useEffect(() => {
    const known = new Map<string, Flow>()
    let timer: ReturnType<typeof setTimeout> | undefined
    const show = () => {
      timer = undefined
      set([...known.values()].sort((one, other) => other.startTime - one.startTime).slice(0, 5))
    }
    const reader = ({ type, data }: Message) => {
      if (type === 'flow_complete') known.delete(data.flowId)
      else if (type !== 'error' && known.size < UNDER_WAY_MAX) known.set(data.flowId, data)
      timer ??= setTimeout(show, 250)
    }
    readers.add(reader)
    return () => { readers.delete(reader); clearTimeout(timer) }
  }, [])
  return flows
}
