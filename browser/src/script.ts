// What `<script src="/_throughline/ops.js">` runs: starts with what the attributes of the tag say.
import { init } from './ops'

const said = (document.currentScript as HTMLScriptElement | null)?.dataset || {}
init({
  origins: said.origins?.split(/[\s,]+/),
  cookie: said.cookie != 'off',
  endpoint: said.endpoint,
})
