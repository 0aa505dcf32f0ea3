// One identity for each role, so that each can do no more than its part: the app decides, jobs train, replicas answer, and
// the workspace runs the cluster and the endpoint.
@description('Region.')
param location string

@description('Makes names unique.')
param token string

@description('Tags of every resource.')
param tags object

resource app 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: 'id-app-${token}'
  location: location
  tags: tags
}

resource jobs 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: 'id-jobs-${token}'
  location: location
  tags: tags
}

resource replicas 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: 'id-replicas-${token}'
  location: location
  tags: tags
}

resource workspace 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: 'id-workspace-${token}'
  location: location
  tags: tags
}

output appName string = app.name
output appId string = app.id
output appClientId string = app.properties.clientId
output appPrincipalId string = app.properties.principalId
output jobsName string = jobs.name
output jobsId string = jobs.id
output jobsClientId string = jobs.properties.clientId
output jobsPrincipalId string = jobs.properties.principalId
output replicasName string = replicas.name
output replicasId string = replicas.id
output replicasClientId string = replicas.properties.clientId
output replicasPrincipalId string = replicas.properties.principalId
output workspaceId string = workspace.id
output workspacePrincipalId string = workspace.properties.principalId
