// Bundles the dashboard into `dist/`: one script, one style sheet, one page. What it writes depends on the sources and
// the pinned packages alone, so that a test can compare it with what is committed. Must never write a path or a date.
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const here = new URL('.', import.meta.url)
const at = path => new URL(path, here)
const LIMIT = 90_000

mkdirSync(at('dist'), { recursive: true })
await build({
  absWorkingDir: at('.').pathname,
  entryPoints: { app: 'src/main.tsx' },
  bundle: true,
  minify: true,
  format: 'iife',
  target: 'es2022',
  charset: 'utf8',
  legalComments: 'inline',
  jsx: 'automatic',
  jsxImportSource: 'preact',
  outdir: 'dist',
})
await build({
  absWorkingDir: at('.').pathname,
  entryPoints: { app: 'src/app.css' },
  minify: true,
  charset: 'utf8',
  outdir: 'dist',
})
const script = readFileSync(at('dist/app.js'), 'utf8')
const style = readFileSync(at('dist/app.css'), 'utf8')
// A saved trace holds both inline: neither may end its element.
if (/<\/script|<!--/i.test(script) || /<\/style/i.test(style)) throw new Error('the bundle would end its own element')
const hash = text => `sha256-${createHash('sha256').update(text).digest('base64')}`
const page = readFileSync(at('src/index.html'), 'utf8')
  .replace('%SCRIPT%', hash(script))
  .replace('%STYLE%', hash(style))
writeFileSync(at('dist/index.html'), page)
const size = [page, script, style].reduce((sum, text) => sum + gzipSync(text, { level: 9 }).length, 0)
console.log(`flow/ui/dist: ${size} bytes compressed`)
if (size > LIMIT) throw new Error(`want ${LIMIT} bytes at the most`)
