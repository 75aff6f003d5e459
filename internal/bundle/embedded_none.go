//go:build !bundled

package bundle

import "io/fs"

// embedded is nil: this build has no bundle in it, so that it takes seconds.
func embedded() fs.FS { return nil }
