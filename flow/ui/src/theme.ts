// Light, dark, high contrast, or what the system says; remembered by the browser.
const NAMES = ['system', 'light', 'dark', 'contrast'] as const
export type Theme = (typeof NAMES)[number]

export function theme(): Theme {
  try {
    const saved = localStorage.getItem('throughline-theme') as Theme
    return NAMES.includes(saved) ? saved : 'system'
  } catch { return 'system' }
}

export function setTheme(name: Theme): void {
  if (name === 'system') document.documentElement.removeAttribute('data-theme')
  else document.documentElement.dataset.theme = name
  try { localStorage.setItem('throughline-theme', name) } catch { /* for this page only */ }
}

export const nextTheme = (now: Theme): Theme => NAMES[(NAMES.indexOf(now) + 1) % NAMES.length]!
