// Keys of the whole dashboard and of the page that is open, in one list, which `?` shows.
import { useEffect, useRef } from 'preact/hooks'

export interface Key { keys: string; does: string; run: (event: KeyboardEvent) => void }

const layers: Key[][] = []
let before = ''
let beforeAt = 0

function typing(target: EventTarget | null): boolean {
  return target instanceof HTMLInputElement || target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement
}

addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return
  if (document.querySelector('dialog[open]') && event.key !== '?') return
  if (typing(event.target)) {
    if (event.key === 'Escape') (event.target as HTMLElement).blur()
    return
  }
  const two = Date.now() - beforeAt < 1200 ? `${before} ${event.key}` : ''
  before = event.key
  beforeAt = Date.now()
  for (const wanted of [two, event.key]) {
    for (const layer of [...layers].reverse()) {
      const key = layer.find(key => key.keys.split(', ').includes(wanted))
      if (key) {
        event.preventDefault()
        before = ''
        return key.run(event)
      }
    }
  }
})

/** Keys for as long as this component is there. */
export function useKeys(keys: Key[]): void {
  const latest = useRef(keys)
  latest.current = keys
  useEffect(() => {
    const layer = latest.current.map((key, place) => ({
      keys: key.keys,
      does: key.does,
      run: (event: KeyboardEvent) => latest.current[place]?.run(event),
    }))
    layers.push(layer)
    return () => { layers.splice(layers.indexOf(layer), 1) }
  }, [keys.map(key => key.keys).join()])
}

export const allKeys = () => layers.map(layer => layer.map(({ keys, does }) => ({ keys, does })))
