//go:build bundled

package bundle

import (
	"embed"
	"io/fs"
)

//go:embed data
var data embed.FS

// embedded is what "make bundle" left in data: a manifest and one compressed
// file for each part.
func embedded() fs.FS {
	files, err := fs.Sub(data, "data")
	if err != nil {
		panic(err) // "data" is a valid path: this cannot happen
	}
	return files
}
