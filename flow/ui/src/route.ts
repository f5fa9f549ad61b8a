// The address is the state: which page, and every filter of it. Links are links; this only spares the reload.
import { useEffect, useState } from 'preact/hooks'

export interface Route { page: string; name: string; params: URLSearchParams }

function read(): Route {
  const [page = '', ...rest] = location.pathname.split('/').filter(Boolean)
  let name = rest.join('/')
  try { name = decodeURIComponent(name) } catch { /* as it stands */ }
  return { page: page || 'operations', name, params: new URLSearchParams(location.search) }
}

const listeners = new Set<() => void>()
const tell = () => listeners.forEach(listener => listener())
addEventListener('popstate', tell)

export function go(to: string, replace = false): void {
  if (replace) history.replaceState(null, '', to)
  else history.pushState(null, '', to)
  tell()
  if (!replace) {
    scrollTo(0, 0)
    // Whoever listens to the page hears where it is; a frame later it is there.
    requestAnimationFrame(() => document.querySelector<HTMLElement>('h1')?.focus({ preventScroll: true }))
  }
}

export function useRoute(): Route {
  const [route, set] = useState(read)
  useEffect(() => {
    const update = () => set(read())
    listeners.add(update)
    return () => { listeners.delete(update) }
  }, [])
  return route
}

/** Sets some of the parameters of this page, and leaves the others. */
export function put(changes: Record<string, string | undefined>, replace = true): void {
  const params = new URLSearchParams(location.search)
  for (const [key, value] of Object.entries(changes)) {
    if (value) params.set(key, value)
    else params.delete(key)
  }
  const text = params.toString()
  go(location.pathname + (text ? '?' + text : ''), replace)
}

/** A page's address, with the environment and time range that were chosen. */
export function to(page: string, name = '', extra: Record<string, string | undefined> = {}): string {
  const now = new URLSearchParams(location.search)
  const params = new URLSearchParams()
  for (const key of ['environment', 'range']) {
    const value = now.get(key)
    if (value) params.set(key, value)
  }
  for (const [key, value] of Object.entries(extra)) if (value) params.set(key, value)
  const text = params.toString()
  return '/' + page + (name ? '/' + encodeURIComponent(name) : '') + (text ? '?' + text : '')
}

/** Clicks on links within the dashboard. */
export function follow(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return
  const link = (event.target as Element).closest('a')
  if (!link || link.target || link.hasAttribute('download')) return
  const href = link.getAttribute('href')
  if (!href || !href.startsWith('/') || href.startsWith('/api/') || href === '/metrics') return
  event.preventDefault()
  go(href)
}
